"""SIGTERM and Ctrl-C stop a run after its checkpoint is written."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType


class Stopped(Exception):
    """A signal stopped the run, and its checkpoint is written.

    Args:
        signal: The signal.
        step: Number of optimizer steps that the run has taken.
        checkpoint: Path of the checkpoint.
    """

    def __init__(self, signal: signal.Signals, step: int, checkpoint: Path) -> None:
        super().__init__(f"stopped by {signal.name} after step {step}; the checkpoint is {checkpoint}")
        self.signal = signal


class StopSignal:
    """A context in which the first SIGTERM or SIGINT only sets :attr:`received`.

    A second signal has its usual effect.

    Args:
        patience: Seconds after a signal without a call of :meth:`beat` after which the process is ended, since it waits
            for another rank that does not answer. Python handles no signal while it waits. None waits forever.
    """

    def __init__(self, patience: float | None = None) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}
        self._watch = None if patience is None else _Watch(patience)

    def beat(self) -> None:
        """Tell that the process is not stuck."""
        if self._watch is not None:
            self._watch.last_beat = time.monotonic()

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._receive)
        if self._watch is not None:
            self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watch is not None:
            self._watch.stop()
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}


class _Watch:
    """A thread that ends the process if it is stuck after a signal.

    The interpreter writes the number of a signal to a socket when the signal arrives, whereas it calls the handler only
    when the main thread returns from what it waits for.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.last_beat = time.monotonic()
        self._stopped = threading.Event()

    def start(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._run, name="stuck after a signal", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        self._stopped.set()
        self._writer.close()  # ends the wait for a signal
        self._thread.join()
        self._reader.close()

    def _run(self) -> None:
        received = self._reader.recv(1)
        if not received:
            return
        self.last_beat = time.monotonic()
        while (left := self.last_beat + self.patience - time.monotonic()) > 0:
            if self._stopped.wait(left):
                return
        name = signal.Signals(received[0]).name
        print(
            f"detr-fast: stopped by {name} after {self.patience:g} s without an answer of the other ranks; the last "
            "checkpoint on the disk remains",
            file=sys.stderr,
            flush=True,
        )
        os._exit(128 + received[0])

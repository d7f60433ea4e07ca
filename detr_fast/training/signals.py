"""SIGTERM and Ctrl-C stop a run after its checkpoint is written."""

from __future__ import annotations

import signal
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
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

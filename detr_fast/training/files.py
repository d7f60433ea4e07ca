"""The files of a run: atomic writes, and the lock of the output directory."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from detr_fast.checkpoints.state_dict import CheckpointError
from detr_fast.training.config import ConfigError


class OutputLock:
    """An exclusive lock of an output directory, which the operating system releases when the process ends.

    The process that has the lock may create further objects for the same directory; other processes are refused.

    Args:
        directory: The output directory, which is created if it does not exist.

    Raises:
        CheckpointError: Another process has the lock.
        ConfigError: The directory cannot be created or written to.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"output: cannot create the directory {directory}: {error.strerror}") from error
        self._lock = FileLock(directory / ".lock", timeout=0, thread_local=False, is_singleton=True)
        self.acquire()

    def acquire(self) -> None:
        """Take the lock again after :meth:`release`; the exceptions are those of the constructor."""
        if self._lock.is_locked:
            return
        try:
            self._lock.acquire()
        except Timeout:
            raise CheckpointError(
                f"another process is writing to {self.directory}; wait until it ends, or choose another --output"
            ) from None
        except OSError as error:
            raise ConfigError(f"output: cannot write to the directory {self.directory}: {error.strerror}") from error

    def release(self) -> None:
        """Release the lock for other processes."""
        self._lock.release(force=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text to a temporary file and rename it, so that ``path`` is never incomplete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    synchronize(partial)
    partial.replace(path)
    synchronize_directory(path.parent)


def synchronize(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def synchronize_directory(directory: Path) -> None:
    """Wait until the names in a directory are on the disk, so that a rename outlives a power failure."""
    with suppress(OSError):  # some systems cannot open or synchronize a directory
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

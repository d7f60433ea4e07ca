"""Checkpoints of a run, which are written atomically and read without executing code."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from detr_fast.checkpoints.state_dict import CheckpointError, verify_checksums
from detr_fast.training.files import synchronize_directory
from detr_fast.training.state import check_state

logger = logging.getLogger(__name__)

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint to a temporary file and rename it, so that ``path`` is never incomplete.

    An existing ``last.pt`` is kept as ``previous.pt``.

    Args:
        state: The state of the run.
        path: The checkpoint.

    Raises:
        CheckpointError: The file could not be written; existing checkpoints are unchanged.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if path.name == LAST and path.exists():
            path.replace(path.with_name(PREVIOUS))
        partial.replace(path)
        synchronize_directory(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
        with suppress(OSError):
            partial.unlink()
        cause = _root_cause(error)
        raise CheckpointError(
            f"could not write {path}: {cause}; earlier checkpoints are unchanged. "
            "Free space there and continue with --resume"
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of :func:`save_checkpoint` to the CPU; only tensors and plain data are unpickled.

    Args:
        path: The checkpoint.

    Raises:
        CheckpointError: The file is missing or damaged (a single flipped bit is found), or is not the checkpoint of a
            run.
    """
    try:
        verify_checksums(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}") from error
    except Exception as error:  # the exceptions of torch.load for a broken file are not specified
        raise CheckpointError(f"{path} is damaged or not a checkpoint: {error}") from error
    try:
        check_state(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is not a complete checkpoint of a training run: {error}") from error
    return state


def load_latest(directory: Path) -> dict[str, Any] | None:
    """Read the latest readable checkpoint in a directory.

    Args:
        directory: The directory.

    Returns:
        The state of the run, or None if there is no checkpoint.

    Raises:
        CheckpointError: There are checkpoints, but none of them can be read.
    """
    files = list(directory.glob("*.pt"))
    if not files:
        return None
    failures = []
    for path in sorted(files, key=_recency, reverse=True):
        try:
            state = load_checkpoint(path)
        except CheckpointError as error:
            failures.append(str(error))
            logger.warning("%s; trying the previous one", error)
            continue
        if failures:
            logger.warning("resuming from %s instead", path)
        return state
    raise CheckpointError("none of the checkpoints can be read: " + "; ".join(failures))


def _recency(path: Path) -> tuple[int, int]:
    order = {LAST: 2, PREVIOUS: 1}
    return order.get(path.name, 0), path.lstat().st_mtime_ns  # a link may point nowhere


def _root_cause(error: BaseException) -> BaseException:
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error

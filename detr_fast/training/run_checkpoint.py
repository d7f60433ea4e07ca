"""Checkpoints: written whole or not at all, read without trust."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from detr_fast.checkpoints.state_dict import CheckpointError

logger = logging.getLogger(__name__)

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write ``state`` beside ``path`` and move it there in one step, so that ``path`` is never half a file.

    The file that was there as ``last.pt`` stays as ``previous.pt``.

    Raises:
        CheckpointError: the file could not be written; what was there before is untouched.
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
    except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
        with suppress(OSError):
            partial.unlink()
        cause = _root_cause(error)
        raise CheckpointError(
            f"could not write {path}: {cause}; the checkpoints written before are untouched. "
            "Make room there and go on with --resume"
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of :func:`save_checkpoint` to the CPU; unpickles nothing but plain data.

    Raises:
        CheckpointError: the file is missing, cut short, or no checkpoint of a run.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}") from error
    except Exception as error:  # what a broken file makes torch raise is not specified
        raise CheckpointError(f"{path} is damaged or no checkpoint: {error}") from error
    if not isinstance(state, dict) or not {"model", "progress"} <= state.keys():
        raise CheckpointError(f"{path} is not a checkpoint of a training run")
    return state


def load_last_whole(directory: Path) -> dict[str, Any] | None:
    """The newest readable checkpoint in ``directory``, None where there is no checkpoint at all.

    Raises:
        CheckpointError: there are checkpoints and none of them can be read.
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
            logger.warning("%s; trying the one before", error)
            continue
        if failures:
            logger.warning("resuming from %s instead", path)
        return state
    raise CheckpointError("no checkpoint can be resumed from: " + "; ".join(failures))


def write_whole(path: Path, text: str) -> None:
    """Write a text file beside ``path`` and move it there in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def _recency(path: Path) -> tuple[int, int]:
    order = {LAST: 2, PREVIOUS: 1}
    return order.get(path.name, 0), path.stat().st_mtime_ns


def _root_cause(error: BaseException) -> BaseException:
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error

"""Monitoring of a run: the check that losses are finite, metrics.jsonl, and TensorBoard."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from detr_fast.ops.faults import raise_faults
from detr_fast.training.files import write_atomically
from detr_fast.training.trackers import Tracker

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


class TrainingError(RuntimeError):
    """Training cannot continue; the message gives the step and the cause."""


class LossMonitor:
    """Collects the losses of several steps on the device and transfers them to the host in a single copy."""

    def __init__(self) -> None:
        self._pending: list[tuple[str, list[str], Tensor]] = []
        self._read: list[dict[str, float]] = []

    def push(self, where: str, total: Tensor, terms: dict[str, Tensor]) -> None:
        """Add the losses of a batch.

        Args:
            where: Description of the step and its images, for error messages.
            total: Total loss, scalar.
            terms: Scalars by name.
        """
        named = {"loss": total.detach(), **terms}
        self._pending.append((where, list(named), torch.stack([value.float() for value in named.values()])))

    def check(self) -> None:
        """Copy the added losses to the host and check that they are finite.

        Raises:
            TrainingError: A loss is not finite; the message gives the step, the images and the term.
        """
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        _raise_device_faults(since=pending[0][0])
        flat = iter(torch.cat([values for *_, values in pending]).tolist())
        for where, names, _ in pending:
            values = list(islice(flat, len(names)))
            broken = {name: value for name, value in zip(names, values, strict=True) if not math.isfinite(value)}
            if broken:
                # The total and the gradient are not finite if any term is not; the term is the cause.
                causes = {n: v for n, v in broken.items() if n not in ("loss", "grad_norm")} or broken
                parts = [f"{name} is {value}" for name, value in causes.items()]
                raise TrainingError(
                    f"{where}: {', '.join(parts)}; the last good checkpoint is kept. A lower learning rate or "
                    "gradient clipping may help; detr-fast check-data finds bad boxes in these images"
                )
            self._read.append(dict(zip(names, values, strict=True)))

    def means(self) -> dict[str, float]:
        """Return the mean of each loss since the last call; empty without losses."""
        self.check()
        rows, self._read = self._read, []
        # Only the last batch of a step has the norm of the gradient.
        values = {name: [row[name] for row in rows if name in row] for name in rows[-1]} if rows else {}
        return {name: sum(found) / len(found) for name, found in values.items()}


def _raise_device_faults(*, since: str) -> None:
    """Raise the faults that kernels reported on the device."""
    try:
        raise_faults()
    except ValueError as error:
        raise TrainingError(f"{since}, or soon after: {error}; the last good checkpoint is kept") from error


class MetricsLog:
    """Appends records to metrics.jsonl, TensorBoard and experiment trackers.

    Args:
        directory: Output directory of the run.
        step: Step at which the run resumes; records of later steps are removed.
        enabled: Whether anything is written; only one rank writes.
        trackers: Experiment trackers, which are finished with the log.
    """

    def __init__(self, directory: Path, *, step: int, enabled: bool = True, trackers: Sequence[Tracker] = ()) -> None:
        self._enabled = enabled
        self._trackers = trackers
        if not enabled:
            return
        from torch.utils.tensorboard.writer import SummaryWriter  # imports TensorBoard

        path = directory / METRICS_FILE
        kept = [row for row in read_metrics(path) if row["step"] <= step] if step and path.exists() else []
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("a")
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=step or None)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write a record.

        Args:
            kind: ``"train"`` or ``"eval"``.
            step: The optimizer step.
            values: The values by name; numbers are also written to TensorBoard and the trackers.
        """
        if not self._enabled:
            return
        scalars = {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, int | float)}
        try:
            self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self._file.flush()
            for name, value in scalars.items():
                self._board.add_scalar(name, value, step)
        except Exception as error:  # TensorBoard's are of any type
            logger.warning("could not log step %d: %s; training continues", step, error)
        for tracker in self._trackers:
            tracker.log(scalars, step)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._enabled:
            self._file.close()
            self._board.close()
            for tracker in self._trackers:
                tracker.finish()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Read the records of a run: losses, learning rates and metrics.

    Args:
        path: The output directory of the run, or its metrics.jsonl.

    Returns:
        The records in their order. Each has ``kind`` (``"train"`` or ``"eval"``), ``step``, and values by their names.
        A line that is incomplete, because the run was killed or is still writing it, ends them.

    Raises:
        FileNotFoundError: There is no metrics.jsonl.
    """
    file = Path(path) / METRICS_FILE if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist; give the output directory of a run")
    rows = []
    for line in file.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows

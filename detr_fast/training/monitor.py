"""What a run says of itself: finite losses, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from detr_fast.training.run_checkpoint import write_whole

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stopped and why."""


class LossMonitor:
    """Holds the losses of the last steps on the device until somebody reads them, all in one transfer."""

    def __init__(self) -> None:
        self._pending: list[tuple[str, list[str], Tensor]] = []
        self._read: list[dict[str, float]] = []

    def push(self, where: str, total: Tensor, terms: dict[str, Tensor]) -> None:
        """Remember the losses of a batch; ``where`` names its step and its images."""
        named = {"loss": total.detach(), **terms}
        self._pending.append((where, list(named), torch.stack([value.float() for value in named.values()])))

    def check(self) -> None:
        """Read what was pushed.

        Raises:
            TrainingError: a loss is not finite; names the step, the images and the term.
        """
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        _raise_device_faults(since=pending[0][0])
        table = torch.stack([values for *_, values in pending]).tolist()
        for (where, names, _), values in zip(pending, table, strict=True):
            broken = {name: value for name, value in zip(names, values, strict=True) if not math.isfinite(value)}
            if broken:
                # The sum and the gradient break with any term; the term is what the reader wants to know.
                causes = {n: v for n, v in broken.items() if n not in ("loss", "grad_norm")} or broken
                parts = [f"{name} is {value}" for name, value in causes.items()]
                raise TrainingError(
                    f"{where}: {', '.join(parts)}; the last good checkpoint is kept. A lower learning rate or "
                    "clipping may help, or these images have bad boxes (detr-fast check-data tells)"
                )
            self._read.append(dict(zip(names, values, strict=True)))

    def means(self) -> dict[str, float]:
        """The mean of each loss since the last call; empty where nothing was pushed."""
        self.check()
        rows, self._read = self._read, []
        # Not every batch has all of them: the gradient's norm comes with those that end a step.
        values = {name: [row[name] for row in rows if name in row] for name in rows[-1]} if rows else {}
        return {name: sum(found) / len(found) for name, found in values.items()}


def _raise_device_faults(*, since: str) -> None:
    """Raise what kernels noted on the device; without kernels nothing is imported and nothing asked."""
    faults = sys.modules.get("detr_fast.kernels.faults")
    try:
        if faults is not None:
            faults.raise_faults()
    except ValueError as error:
        raise TrainingError(f"{since}, or soon after: {error}; the last good checkpoint is kept") from error


class MetricsLog:
    """Appends to metrics.jsonl and TensorBoard; on resuming, what was logged after ``step`` is dropped."""

    def __init__(self, directory: Path, *, step: int, enabled: bool = True) -> None:
        self._enabled = enabled  # only one rank writes
        if not enabled:
            return
        from torch.utils.tensorboard.writer import SummaryWriter  # imports TensorBoard

        path = directory / METRICS_FILE
        kept = [row for row in read_metrics(path) if row["step"] <= step] if step else []
        write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("a")
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=step or None)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write one record; ``kind`` is ``"train"`` or ``"eval"``."""
        if not self._enabled:
            return
        try:
            self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self._file.flush()
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, step)
        except OSError as error:  # a run is worth more than its log
            logger.warning("could not log step %d: %s; training goes on", step, error)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._enabled:
            self._file.close()
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line that was cut off is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows

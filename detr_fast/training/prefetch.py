"""Moving batches to a device ahead of their computation, and measuring what a run waits for."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import torch

from detr_fast.data import Batch, PackedBatch

_NOTICEABLE = 0.05  # share of the time


@dataclass
class Waits:
    """What a loop over :class:`DeviceBatches` waited for, from its second batch on.

    Attributes:
        total: Duration of the loop in seconds.
        loader: Time in seconds for which the host waited for the loader and, on a GPU, the device had no batch either.
        device: Time in seconds for which the host, a batch ahead, waited for a GPU.
        is_on_gpu: Whether the batches are computed by a GPU, beside the host.
    """

    total: float = 0.0
    loader: float = 0.0
    device: float = 0.0
    is_on_gpu: bool = False

    def describe(self) -> str | None:
        """Describe in one line what bounds the loop; None if less than two batches were measured."""
        if not self.total:
            return None
        loader, device = self.loader / self.total, self.device / self.total
        waited = f"{loader:.0%} of the time was spent waiting for the loader"
        if self.is_on_gpu:
            waited += f" and {device:.0%} for the device"
        if loader >= max(_NOTICEABLE, device):
            return f"the loader bounds the run: {waited}; more data.num_workers may help"
        if device >= _NOTICEABLE:
            return f"the device bounds the run: {waited}"
        computes = "which launches the work of the device" if self.is_on_gpu else "which computes"
        return f"the host, {computes}, bounds the run: {waited}"


class DeviceBatches:
    """Moves batches to a device, normalized and padded, each while the one before is computed.

    On a GPU, copies, normalization and padding run on a stream of their own. When the loop asks for a batch, the work
    of the present one is queued already and goes on meanwhile. The host is at most one batch ahead of the device, so
    that no more than three batches take memory: before it moves a batch, it waits for the end of the one before the
    present one, at which the device has the complete present one to compute.

    Args:
        batches: The batches, in pinned memory if they are moved to a GPU.
        device: The device.
        memory_format: Memory format of the images.

    Attributes:
        waits: What the loop waited for; complete after its end.
    """

    def __init__(
        self,
        batches: Iterable[PackedBatch],
        device: torch.device,
        *,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self._batches = batches
        self._device = device
        self._memory_format = memory_format
        self.waits = Waits(is_on_gpu=device.type == "cuda")

    def __iter__(self) -> Iterator[Batch]:
        moved = self._moved_on_stream() if self._device.type == "cuda" else self._moved()
        begin = None
        for batch in moved:
            yield batch
            now = time.perf_counter()
            begin = now if begin is None else begin
            self.waits.total = now - begin

    def _moved(self) -> Iterator[Batch]:
        for packed, waited in _timed(self._batches):
            self.waits.loader += waited
            yield packed.to(self._device, memory_format=self._memory_format)

    def _moved_on_stream(self) -> Iterator[Batch]:
        stream, current = _copy_stream(self._device), torch.cuda.current_stream(self._device)
        previous: _Computed | None = None
        present: _Computed | None = None
        for packed, waited in _timed(self._batches):
            if previous is not None:
                begin = time.perf_counter()
                previous.end.synchronize()
                self.waits.device += time.perf_counter() - begin
                self.waits.loader += previous.waited_for_loader()
            with torch.cuda.stream(stream):
                batch = packed.to(self._device, non_blocking=True, memory_format=self._memory_format)
            current.wait_stream(stream)
            batch.record_stream(current)
            previous, present = present, _Computed(waited, after=None if present is None else present.end)
            present.start.record(current)
            yield batch
            present.end.record(current)


class _Computed:
    """The computation of a batch on a GPU."""

    def __init__(self, waited: float, *, after: torch.cuda.Event | None) -> None:
        self.start, self.end = (torch.cuda.Event(enable_timing=True, blocking=True) for _ in range(2))
        self._waited, self._after = waited, after

    def waited_for_loader(self) -> float:
        """Return the time in seconds for which the host waited for the loader and the device had nothing to compute."""
        idle = 0.0 if self._after is None else self._after.elapsed_time(self.start) / 1000
        return min(idle, self._waited)


def _timed(batches: Iterable[PackedBatch]) -> Iterator[tuple[PackedBatch, float]]:
    """Yield the batches, and the time in seconds for which each had to be waited for; 0 for the first."""
    waited, iterator = 0.0, iter(batches)
    batch = next(iterator, None)
    while batch is not None:
        yield batch, waited
        begin = time.perf_counter()
        batch = next(iterator, None)
        waited = time.perf_counter() - begin


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream on which batches are moved to a GPU; memory is reused on one stream only."""
    return torch.cuda.Stream(device)

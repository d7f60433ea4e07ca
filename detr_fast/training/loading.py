"""Data sets and their batches for training and evaluation, on each rank."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from detr_fast.data import Batch, Category, CocoDetection, DataError, PackedBatch, PaddedBatchSampler, Resize, collate
from detr_fast.data.annotations import Orientation
from detr_fast.data.padded_sizes import make_eval_batches
from detr_fast.training.config import DataConfig
from detr_fast.training.ranks import count_local_ranks

_NOTICEABLE = 0.05  # share of the time
_MAX_WORKERS = 16  # which load more images than a GPU trains a DETR with


@dataclass
class TrainData:
    """The batches of the training images, in an order that depends on the seed and the epoch only.

    Attributes:
        dataset: The training data set.
        sampler: Draws the images of this rank, or its batches.
        loader: Loads the batches.
    """

    dataset: CocoDetection
    sampler: DistributedSampler | PaddedBatchSampler
    loader: DataLoader

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterable[PackedBatch]:
        """Iterate over the batches of an epoch.

        Args:
            epoch: The epoch.
            start: Index of the first batch; the batches before it are not loaded.
        """
        self.dataset.set_epoch(epoch)
        self.sampler.set_epoch(epoch)
        return skip_first_batches(self.loader, start) if start else self.loader


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


def build_train_data(config: DataConfig, accelerator: Accelerator, *, seed: int) -> TrainData:
    """Open the training data set.

    Args:
        config: The data sets of the run.
        accelerator: Determines the rank and the number of ranks.
        seed: Seed of the order of the images and of the augmentation.

    Raises:
        DataError: The data set cannot be used, or has no valid box.
    """
    dataset = CocoDetection(
        config.train_images,
        config.train_annotations,
        config.augmentation,
        seed=seed,
        on_unreadable="substitute",
        orientation=config.orientation,
    )
    if dataset.num_boxes == 0:
        raise DataError(f"the training data have no valid box, so that there is nothing to learn; {dataset.describe()}")
    ranks, rank = accelerator.num_processes, accelerator.process_index
    if config.padded_sizes:
        batches = PaddedBatchSampler(
            dataset, config.padded_sizes, config.batch_size, seed=seed, rank=rank, num_ranks=ranks
        )
        return TrainData(dataset, batches, _loader(dataset, batches, accelerator, num_workers=config.num_workers))
    # As in facebookresearch/detr, an incomplete last batch is left out, unless it is the only one.
    drop_last = len(dataset) >= config.batch_size * ranks
    sampler: DistributedSampler = DistributedSampler(dataset, ranks, rank, shuffle=True, seed=seed, drop_last=drop_last)
    plain = BatchSampler(sampler, config.batch_size, drop_last)
    return TrainData(dataset, sampler, _loader(dataset, plain, accelerator, num_workers=config.num_workers))


def build_eval_data(
    images: str | Path,
    annotations: str | Path,
    accelerator: Accelerator,
    *,
    transform: Resize,
    categories: Sequence[Category] | None,
    batch_size: int,
    num_workers: int | None,
    orientation: Orientation,
    padded_sizes: Sequence[tuple[int, int]] = (),
) -> tuple[CocoDetection, DataLoader]:
    """Open a data set for evaluation.

    Args:
        images: Directory of the images.
        annotations: As ``annotation_file`` of :class:`CocoDetection`.
        accelerator: Determines the rank and the number of ranks.
        transform: The resize of the images.
        categories: The categories of the model; None for those of the annotations.
        batch_size: Images per batch.
        num_workers: Processes that load images; None for the number of :func:`choose_num_workers`.
        orientation: As for :class:`CocoDetection`.
        padded_sizes: (height, width) pairs in pixels, to the smallest of which that holds its images a batch is padded;
            a batch whose images none of them holds is padded to their largest height and width.

    Returns:
        The data set, and a loader of this rank's share of it; each image is loaded by one rank.

    Raises:
        DataError: The data set cannot be used.
    """
    options: Any = {"categories": categories, "on_unreadable": "skip", "orientation": orientation}
    dataset = CocoDetection(images, annotations, transform, **options)
    share = range(accelerator.process_index, len(dataset), accelerator.num_processes)
    batches = make_eval_batches(dataset, share, padded_sizes, batch_size)
    collate_fn = partial(collate, padded_sizes=padded_sizes)
    return dataset, _loader(dataset, batches, accelerator, num_workers=num_workers, collate_fn=collate_fn)


def choose_num_workers(num_batches: int, *, num_local_ranks: int, is_on_gpu: bool) -> int:
    """Choose the number of processes that load images for a rank.

    On a GPU it is the share of the rank in the cores that this process may use, less one for the rank itself, and at
    most 16. On a CPU, whose cores the model uses, it is 1. There is at least one, and no more than there are batches.

    Args:
        num_batches: Batches of the rank in an epoch.
        num_local_ranks: Ranks on this machine.
        is_on_gpu: Whether the model is on a GPU.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores // num_local_ranks - 1, _MAX_WORKERS) if is_on_gpu else 1
    return max(1, min(workers, num_batches))


def _loader(
    dataset: CocoDetection,
    batches: BatchSampler | PaddedBatchSampler | list[list[int]],
    accelerator: Accelerator,
    *,
    num_workers: int | None,
    collate_fn: Callable[..., PackedBatch] = collate,
) -> DataLoader:
    is_on_gpu = accelerator.device.type == "cuda"
    if num_workers is None:
        local_ranks = count_local_ranks(accelerator)
        num_workers = choose_num_workers(len(batches), num_local_ranks=local_ranks, is_on_gpu=is_on_gpu)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate_fn,
        pin_memory=is_on_gpu,
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),  # so that the loader does not advance the random state of the run
    )

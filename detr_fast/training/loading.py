"""Data sets and their batches for training and evaluation, on each rank."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from detr_fast.data import Category, CocoDetection, DataError, PackedBatch, PaddedBatchSampler, Resize, collate
from detr_fast.data.annotations import Orientation
from detr_fast.data.padded_sizes import make_eval_batches
from detr_fast.training.config import DataConfig
from detr_fast.training.ranks import count_local_ranks

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

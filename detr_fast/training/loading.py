"""Data sets and their batches, for training and for evaluation, on every rank."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from torch.utils.data import DataLoader, DistributedSampler, Subset

from detr_fast.data import Batch, Category, CocoDetection, DataError, Resize, collate
from detr_fast.training.config import DataConfig


@dataclass
class TrainData:
    """The training pictures in batches, in an order that follows from the seed and the epoch alone."""

    dataset: CocoDetection
    sampler: DistributedSampler
    loader: DataLoader

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterable[Batch]:
        """The batches of an epoch from the ``start``-th on; those before it are not read."""
        self.dataset.set_epoch(epoch)
        self.sampler.set_epoch(epoch)
        return skip_first_batches(self.loader, start) if start else self.loader


def build_train_data(config: DataConfig, accelerator: Accelerator, *, seed: int) -> TrainData:
    """Open the training pictures.

    Raises:
        DataError: there is nothing to learn from.
    """
    dataset = CocoDetection(
        config.train_images,
        config.train_annotations,
        config.augmentation,
        seed=seed,
        on_unreadable="substitute",
    )
    if dataset.num_boxes == 0:
        raise DataError(f"no usable box, so that there is nothing to learn; {dataset.describe()}")
    ranks = accelerator.num_processes
    # As in the original an incomplete last batch is left out, unless there is no other.
    drop_last = len(dataset) >= config.batch_size * ranks
    sampler: DistributedSampler = DistributedSampler(
        dataset, ranks, accelerator.process_index, shuffle=True, seed=seed, drop_last=drop_last
    )
    loader = _loader(
        dataset,
        accelerator,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        sampler=sampler,
        drop_last=drop_last,
    )
    return TrainData(dataset, sampler, loader)


def build_eval_data(
    images: str | Path,
    annotations: str | Path,
    accelerator: Accelerator,
    *,
    transform: Resize,
    categories: Sequence[Category] | None,
    batch_size: int,
    num_workers: int,
) -> tuple[CocoDetection, DataLoader]:
    """Open pictures to score on; the loader gives this rank's share of them, each picture once.

    Raises:
        DataError: the data set cannot be used.
    """
    dataset = CocoDetection(images, annotations, transform, categories=categories, on_unreadable="skip")
    share = Subset(dataset, range(accelerator.process_index, len(dataset), accelerator.num_processes))
    return dataset, _loader(share, accelerator, batch_size=batch_size, num_workers=num_workers)


def _loader(dataset: Any, accelerator: Accelerator, *, num_workers: int, **options: Any) -> DataLoader:
    return DataLoader(
        dataset,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=accelerator.device.type == "cuda",
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),  # its own, so that opening a loader leaves the run's random state alone
        **options,
    )

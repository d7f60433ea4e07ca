"""Data sets and their batches for training and evaluation, on each rank."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from torch.utils.data import DataLoader, DistributedSampler, Subset

from detr_fast.data import Category, CocoDetection, DataError, PackedBatch, Resize, collate
from detr_fast.data.annotations import Orientation
from detr_fast.training.config import DataConfig


@dataclass
class TrainData:
    """The batches of the training images, in an order that depends on the seed and the epoch only.

    Attributes:
        dataset: The training data set.
        sampler: Draws the images of this rank.
        loader: Loads the batches.
    """

    dataset: CocoDetection
    sampler: DistributedSampler
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
    ranks = accelerator.num_processes
    # As in facebookresearch/detr, an incomplete last batch is left out, unless it is the only one.
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
    orientation: Orientation,
) -> tuple[CocoDetection, DataLoader]:
    """Open a data set for evaluation.

    Args:
        images: Directory of the images.
        annotations: As ``annotation_file`` of :class:`CocoDetection`.
        accelerator: Determines the rank and the number of ranks.
        transform: The resize of the images.
        categories: The categories of the model; None for those of the annotations.
        batch_size: Images per batch.
        num_workers: Processes that load images.
        orientation: As for :class:`CocoDetection`.

    Returns:
        The data set, and a loader of this rank's share of it; each image is loaded by one rank.

    Raises:
        DataError: The data set cannot be used.
    """
    options: Any = {"categories": categories, "on_unreadable": "skip", "orientation": orientation}
    dataset = CocoDetection(images, annotations, transform, **options)
    share = Subset(dataset, range(accelerator.process_index, len(dataset), accelerator.num_processes))
    return dataset, _loader(share, accelerator, batch_size=batch_size, num_workers=num_workers)


def _loader(dataset: Any, accelerator: Accelerator, *, num_workers: int, **options: Any) -> DataLoader:
    return DataLoader(
        dataset,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=accelerator.device.type == "cuda",
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),  # so that the loader does not advance the random state of the run
        **options,
    )

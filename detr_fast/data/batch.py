"""Batches of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detr_fast.data.coco import Sample
from detr_fast.images import MEAN, STD
from detr_fast.ops.normalize_and_pad import normalize_and_pad
from detr_fast.ops.packed_images import PackedImages
from detr_fast.ops.targets import Targets


@dataclass(frozen=True)
class Batch:
    """A batch of B padded images and their ground truth.

    Attributes:
        images: Floating point [B,3,H,W], normalized, zero where padded.
        mask: Padding mask, bool [B,H,W], True where padded.
        is_padded: Whether any image is padded; known without a synchronization with a device.
        targets: Targets of the B images.
        image_ids: Ids of the B images in the annotation file.
        original_sizes: (height, width) of each of the B image files.
    """

    images: Tensor
    mask: Tensor
    is_padded: bool
    targets: Targets
    image_ids: list[int]
    original_sizes: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def padding(self) -> Tensor | None:
        """The mask as a model takes it: None if no image is padded."""
        return self.mask if self.is_padded else None


@dataclass(frozen=True)
class PackedBatch:
    """A batch as a data loader puts it together: its images are neither normalized nor padded yet.

    Attributes:
        images: The B images.
        targets: Targets of the B images.
        image_ids: Ids of the B images in the annotation file.
        original_sizes: (height, width) of each of the B image files.
    """

    images: PackedImages
    targets: Targets
    image_ids: list[int]
    original_sizes: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.image_ids)

    def to(
        self,
        device: torch.device | str,
        non_blocking: bool = False,
        *,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Batch:
        """Copy the batch to ``device``, normalize its images there by :data:`~detr_fast.images.MEAN` and
        :data:`~detr_fast.images.STD`, and pad them to a common size.

        Args:
            device: The device.
            non_blocking: Whether a copy from pinned memory is asynchronous.
            dtype: Floating point dtype of the images.
            memory_format: Memory format of the images, ``torch.contiguous_format`` or ``torch.channels_last``.
        """
        images, mask = normalize_and_pad(
            self.images.to(device, non_blocking), mean=MEAN, std=STD, dtype=dtype, memory_format=memory_format
        )
        targets = self.targets.to(device, non_blocking=non_blocking)
        is_padded = len(set(self.images.sizes)) > 1
        return Batch(images, mask, is_padded, targets, self.image_ids, self.original_sizes)

    def pin_memory(self) -> PackedBatch:
        """Return the batch in pinned host memory."""
        return replace(self, images=self.images.pin_memory(), targets=self.targets.pin_memory())


def collate(samples: Sequence[Sample | None]) -> PackedBatch:
    """Pack the images and the targets of samples; the ``collate_fn`` of a DataLoader.

    Args:
        samples: The samples. None stands for an image that could not be read and is left out.

    Returns:
        The batch; without any sample it has no image.
    """
    present = [sample for sample in samples if sample is not None]
    return PackedBatch(
        images=PackedImages.from_list([sample.image for sample in present], [sample.flipped for sample in present]),
        targets=Targets.from_list([{"labels": sample.labels, "boxes": sample.boxes} for sample in present]),
        image_ids=[sample.image_id for sample in present],
        original_sizes=[sample.original_size for sample in present],
    )

"""Batches of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detr_fast.data.coco import Sample
from detr_fast.images import pad_images
from detr_fast.ops.targets import Targets


@dataclass(frozen=True)
class Batch:
    """A batch of B padded images and their ground truth.

    Attributes:
        images: float32 [B,3,H,W], normalized, zero where padded.
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

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch with its tensors on ``device``."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            mask=self.mask.to(device, non_blocking=non_blocking),
            targets=self.targets.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Batch:
        """Return the batch in pinned host memory."""
        return replace(
            self,
            images=self.images.pin_memory(),
            mask=self.mask.pin_memory(),
            targets=self.targets.pin_memory(),
        )


def collate(samples: Sequence[Sample | None]) -> Batch:
    """Pad samples to a common size and pack their targets; the ``collate_fn`` of a DataLoader.

    Args:
        samples: The samples. None stands for an image that could not be read and is left out.

    Returns:
        The batch; without any sample it has no image (B = H = W = 0).
    """
    present = [sample for sample in samples if sample is not None]
    images, mask = pad_images([sample.image for sample in present])
    return Batch(
        images=images,
        mask=mask,
        is_padded=bool(mask.any()),
        targets=Targets.from_list([{"labels": sample.labels, "boxes": sample.boxes} for sample in present]),
        image_ids=[sample.image_id for sample in present],
        original_sizes=[sample.original_size for sample in present],
    )

"""Samples put together into a batch."""

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
    """B pictures of one padded size, and their ground truth."""

    images: Tensor  # float32 [B,3,H,W], normalised, zeros where padded
    mask: Tensor  # bool [B,H,W], True where padded
    targets: Targets
    image_ids: list[int]  # length B
    original_sizes: list[tuple[int, int]]  # length B: (height, width) of the stored pictures

    def __len__(self) -> int:
        return len(self.image_ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with its tensors on ``device``."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            mask=self.mask.to(device, non_blocking=non_blocking),
            targets=self.targets.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Batch:
        """The same batch in pinned host memory."""
        return replace(
            self,
            images=self.images.pin_memory(),
            mask=self.mask.pin_memory(),
            targets=self.targets.pin_memory(),
        )


def collate(samples: Sequence[Sample | None]) -> Batch:
    """Pad samples to the largest of them and pack their targets; a DataLoader's ``collate_fn``.

    None, which stands for a picture that could not be read, is left out; where nothing is left the batch has no
    image (B = H = W = 0).
    """
    present = [sample for sample in samples if sample is not None]
    images, mask = pad_images([sample.image for sample in present])
    return Batch(
        images=images,
        mask=mask,
        targets=Targets.from_list([{"labels": sample.labels, "boxes": sample.boxes} for sample in present]),
        image_ids=[sample.image_id for sample in present],
        original_sizes=[sample.original_size for sample in present],
    )

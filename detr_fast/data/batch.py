"""Batches of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detr_fast.data.coco import Sample
from detr_fast.data.padded_sizes import smallest_holding
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
        padding_share: Share of the pixels that are padding, in [0,1].
    """

    images: Tensor
    mask: Tensor
    is_padded: bool
    targets: Targets
    image_ids: list[int]
    original_sizes: list[tuple[int, int]]
    padding_share: float = 0.0

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def padding(self) -> Tensor | None:
        """The mask as a model takes it: None if no image is padded."""
        return self.mask if self.is_padded else None

    def record_stream(self, stream: torch.Stream) -> None:
        """Mark the tensors as used by a stream other than the one on which they were made.

        Their memory is then not used again before the work that is queued on the stream when they are freed is done.
        """
        for tensor in (self.images, self.mask, self.targets.labels, self.targets.boxes, self.targets.offsets):
            tensor.record_stream(stream)


@dataclass(frozen=True)
class PackedBatch:
    """A batch as a data loader puts it together: its images are neither normalized nor padded yet.

    Attributes:
        images: The B images.
        targets: Targets of the B images.
        image_ids: Ids of the B images in the annotation file.
        original_sizes: (height, width) of each of the B image files.
        padded_size: (height, width) to which the images are padded; None for the largest height and the largest width.
    """

    images: PackedImages
    targets: Targets
    image_ids: list[int]
    original_sizes: list[tuple[int, int]]
    padded_size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def padding_share(self) -> float:
        """Share of the pixels of the padded batch that are padding, in [0,1]; 0 without images."""
        height, width = self.padded_size or self.images.largest
        pixels = sum(h * w for h, w in self.images.sizes)
        return 1 - pixels / (len(self) * height * width) if len(self) else 0.0

    def to(
        self,
        device: torch.device | str,
        non_blocking: bool = False,
        *,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Batch:
        """Copy the batch to ``device``, normalize its images there by :data:`~detr_fast.images.MEAN` and
        :data:`~detr_fast.images.STD`, and pad them to :attr:`padded_size`.

        Args:
            device: The device.
            non_blocking: Whether a copy from pinned memory is asynchronous.
            dtype: Floating point dtype of the images.
            memory_format: Memory format of the images, ``torch.contiguous_format`` or ``torch.channels_last``.

        Raises:
            ValueError: An image exceeds :attr:`padded_size`.
        """
        images, mask = normalize_and_pad(
            self.images.to(device, non_blocking),
            self.padded_size,
            mean=MEAN,
            std=STD,
            dtype=dtype,
            memory_format=memory_format,
        )
        targets = self.targets.to(device, non_blocking=non_blocking)
        is_padded = any(size != tuple(images.shape[2:]) for size in self.images.sizes)
        return Batch(images, mask, is_padded, targets, self.image_ids, self.original_sizes, self.padding_share)

    def pin_memory(self) -> PackedBatch:
        """Return the batch in pinned host memory."""
        return replace(self, images=self.images.pin_memory(), targets=self.targets.pin_memory())


def collate(samples: Sequence[Sample | None], padded_sizes: Sequence[tuple[int, int]] = ()) -> PackedBatch:
    """Pack the images and the targets of samples; the ``collate_fn`` of a DataLoader.

    Args:
        samples: The samples. None stands for an image that could not be read and is left out.
        padded_sizes: (height, width) of the batches. Samples that were loaded without a padded size are padded to the
            smallest of these that holds them all, or else to their largest height and width.

    Returns:
        The batch; without any sample it has no image.
    """
    present = [sample for sample in samples if sample is not None]
    images = PackedImages.from_list([sample.image for sample in present], [sample.flipped for sample in present])
    padded_size = present[0].padded_size if present else None
    return PackedBatch(
        images=images,
        targets=Targets.from_list([{"labels": sample.labels, "boxes": sample.boxes} for sample in present]),
        image_ids=[sample.image_id for sample in present],
        original_sizes=[sample.original_size for sample in present],
        padded_size=padded_size or smallest_holding(images.largest, padded_sizes),
    )

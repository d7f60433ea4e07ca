"""The pixels of a batch of images of different sizes, packed in one buffer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedImages:
    """B RGB images of different sizes in one buffer, not padded.

    Build it with :meth:`from_list`.

    Attributes:
        pixels: uint8 [N], the images one after the other, each in the order height, width, channel.
        layout: int64 [B,4], on the same device: for each image the index of its first byte in ``pixels``, its
            height, its width, and 1 if it is to be mirrored from left to right, else 0.
        sizes: (height, width) of each image, on the host; at least 1, and
            less than 2**31 bytes an image.

    Raises:
        ValueError: the fields do not fit together.
    """

    pixels: Tensor
    layout: Tensor
    sizes: list[tuple[int, int]]

    def __post_init__(self) -> None:
        if self.pixels.dim() != 1 or self.pixels.dtype != torch.uint8:
            raise ValueError(f"pixels must be uint8 [N], got {self.pixels.dtype} {list(self.pixels.shape)}")
        if list(self.layout.shape) != [len(self.sizes), 4] or self.layout.dtype != torch.int64:
            raise ValueError(
                f"layout must be int64 [B,4] with B={len(self.sizes)}, the number of sizes, "
                f"got {self.layout.dtype} {list(self.layout.shape)}"
            )
        if self.layout.device != self.pixels.device:
            raise ValueError(f"pixels are on {self.pixels.device}, but layout is on {self.layout.device}")
        for image, (height, width) in enumerate(self.sizes):
            if height < 1 or width < 1:
                raise ValueError(f"image {image}: an image has at least one pixel, got a size of {height}x{width}")
            if 3 * height * width >= 2**31:
                raise ValueError(f"image {image}: an image has less than 2**31 bytes, got a size of {height}x{width}")
        needed = sum(3 * height * width for height, width in self.sizes)
        if needed > self.pixels.shape[0]:
            raise ValueError(f"the sizes need {needed} bytes, but pixels has {self.pixels.shape[0]}")

    @classmethod
    def from_list(cls, images: Sequence[Tensor], flipped: Sequence[bool] | None = None) -> PackedImages:
        """Pack images.

        Args:
            images: B tensors uint8 [h,w,3] on one device.
            flipped: for each image whether it is to be mirrored from left to right when it is normalized; None for
                no image.

        Raises:
            ValueError: an image is not uint8 [h,w,3] or has no pixel, or ``flipped`` has another length.
        """
        for index, image in enumerate(images):
            if image.dim() != 3 or image.shape[2] != 3 or image.dtype != torch.uint8:
                raise ValueError(f"image {index} must be uint8 [h,w,3], got {image.dtype} {list(image.shape)}")
        flips = [False] * len(images) if flipped is None else list(flipped)
        if len(flips) != len(images):
            raise ValueError(f"flipped has {len(flips)} entries for {len(images)} images")
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        begins = accumulate((3 * height * width for height, width in sizes), initial=0)
        rows = [(begin, *size, int(flip)) for begin, size, flip in zip(begins, sizes, flips, strict=False)]
        return cls(
            pixels=torch.cat([image.reshape(-1) for image in images]) if images else torch.zeros(0, dtype=torch.uint8),
            layout=torch.tensor(rows, dtype=torch.int64).view(-1, 4).to(images[0].device if images else "cpu"),
            sizes=sizes,
        )

    @property
    def largest(self) -> tuple[int, int]:
        """The largest height and the largest width; 0 without images."""
        return max((height for height, _ in self.sizes), default=0), max((width for _, width in self.sizes), default=0)

    def __len__(self) -> int:
        return len(self.sizes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedImages:
        """Return the images with their tensors on ``device``."""
        pixels, layout = (tensor.to(device, non_blocking=non_blocking) for tensor in (self.pixels, self.layout))
        return replace(self, pixels=pixels, layout=layout)

    def pin_memory(self) -> PackedImages:
        """Return the images in pinned host memory."""
        return replace(self, pixels=self.pixels.pin_memory(), layout=self.layout.pin_memory())

"""Transforms of images and their boxes.

A transform takes an image (uint8 [h,w,3]), its boxes (xyxy in pixels), their labels and a random number generator, and
returns the transformed image, boxes and labels, and, if it likes, whether the image is yet to be mirrored: see
:class:`Labeled`. It may have a method ``fewest_pixels`` like that of :class:`Augmentation`, by which a data set reduces
files while it decodes them, and a method ``draw_size``, by which images are put together in batches before they are
loaded.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detr_fast.images import MAX_SIDE, is_side, resize_pixels, resize_shape

Region: TypeAlias = tuple[int, int, int, int]  # left, top, right, bottom in pixels

# PyTorch resizes complete images only; Pillow resizes regions too, but takes several times as long for a pixel. An
# image with more than this many times the pixels of the region is left to Pillow.
_PILLOW_RATIO = 5


class Labeled(NamedTuple):
    """An image with its boxes and labels.

    Attributes:
        image: The pixels, uint8 [h,w,3].
        boxes: Boxes of its t objects, float32 [t,4], xyxy in pixels.
        labels: Labels of the objects, int64 [t].
        flipped: Whether the image is yet to be mirrored from left to right, which is done when the batch is normalized;
            the boxes are those of the mirrored image.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    flipped: bool = False


class _Drawn(NamedTuple):
    """What was drawn for an image: the flip, size and region of the crop if there is one, and the final size."""

    flipped: bool
    crop: tuple[tuple[int, int], Region] | None
    target: tuple[int, int]


Transform: TypeAlias = Callable[[Tensor, Tensor, Tensor, random.Random], Labeled | tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Augmentation:
    """The training augmentation of DETR (Carion et al. 2020, section 4).

    A random horizontal flip is followed by a final resize, or, with probability ``crop``, by a resize to an
    intermediate size, a random crop and the final resize. Each resize keeps the aspect ratio.

    Args:
        scales: lengths in pixels, one of which is drawn for the shorter side in the final resize.
        max_size: maximum length of the longer side after the final resize; None for no limit.
        flip: probability of the flip.
        crop: probability of the crop.
        middle_scales: lengths in pixels, one of which is drawn for the shorter side before the crop.
        middle_max_size: maximum length of the longer side before the crop; None for no limit.
        crop_min: minimum side of the crop in pixels; a shorter side of the image is not cropped.
        crop_max: maximum side of the crop in pixels.
        single_resize: cut the region of the crop, rounded to pixels, out of the image as it is, and resize it once to
            the final size; the intermediate size only determines the region. It is faster and blurs less.
        reduced_decode: let a data set reduce files in JPEG format while it decodes them, where that leaves more pixels
            than any resize that can be drawn gives. It is faster for large photographs and changes their pixels.

    Raises:
        ValueError: An argument is out of range.
    """

    scales: tuple[int, ...] = tuple(range(480, 801, 32))
    max_size: int | None = 1333
    flip: float = 0.5
    crop: float = 0.5
    middle_scales: tuple[int, ...] = (400, 500, 600)
    middle_max_size: int | None = None
    crop_min: int = 384
    crop_max: int = 600
    single_resize: bool = False
    reduced_decode: bool = False

    def __post_init__(self) -> None:
        for name in ("scales", "middle_scales"):
            sizes = getattr(self, name)
            if not isinstance(sizes, Sequence) or not sizes or not all(map(is_side, sizes)):
                raise ValueError(
                    f"augmentation: {name} must contain at least one length, all integers from 1 to {MAX_SIDE}, "
                    f"got {sizes}"
                )
        for name in ("max_size", "middle_max_size"):
            if getattr(self, name) is not None and not is_side(getattr(self, name)):
                raise ValueError(
                    f"augmentation: {name} must be an integer from 1 to {MAX_SIDE}, got {getattr(self, name)}"
                )
        for name in ("flip", "crop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augmentation: {name} is a probability from 0 to 1, got {getattr(self, name)}")
        if not 1 <= self.crop_min <= self.crop_max:
            raise ValueError(
                f"augmentation: crop_min and crop_max must satisfy 1 <= crop_min <= crop_max, "
                f"got {self.crop_min} and {self.crop_max}"
            )

    @classmethod
    def detr(cls) -> Augmentation:
        """The augmentation of facebookresearch/detr, without a limit of the longer side before the crop."""
        return cls()

    @classmethod
    def mmdet3(cls) -> Augmentation:
        """The augmentation of MMDetection 3.3, which limits the longer side before the crop to 1333 pixels."""
        return cls(middle_max_size=1333)

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, rng: random.Random) -> Labeled:
        height, width = image.shape[:2]
        drawn = self._draw(width, height, rng)
        if drawn.flipped:
            boxes = _mirror_boxes(boxes, width)
        if drawn.crop is not None:
            crop = _cut if self.single_resize else _resize_and_crop
            image, boxes, labels = crop(image, boxes, labels, *drawn.crop, drawn.flipped)
        return Labeled(*_resize(image, boxes, drawn.target), labels, drawn.flipped)

    def draw_size(self, width: int, height: int, rng: random.Random) -> tuple[int, int]:
        """Return the (width, height) to which an image of this size is transformed with the same random numbers."""
        return self._draw(width, height, rng).target

    def fewest_pixels(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) above which an image of this size has more pixels than any resize needs.

        It is the size itself without ``reduced_decode``.
        """
        if not self.reduced_decode:
            return width, height
        sizes = [resize_shape(width, height, max(self.scales), self.max_size)]
        if self.crop:
            middle = resize_shape(width, height, max(self.middle_scales), self.middle_max_size)
            zoom = max(1.0, max(self.scales) / self.crop_min) if self.single_resize else 1.0
            sizes.append((math.ceil(middle[0] * zoom), math.ceil(middle[1] * zoom)))
        return min(width, max(x for x, _ in sizes)), min(height, max(y for _, y in sizes))

    def _draw(self, width: int, height: int, rng: random.Random) -> _Drawn:
        flipped, crop = rng.random() < self.flip, None
        if rng.random() >= 1 - self.crop:
            size = resize_shape(width, height, rng.choice(self.middle_scales), self.middle_max_size)
            region = self._draw_region(size, rng)
            width, height = region[2] - region[0], region[3] - region[1]
            crop = size, region
        return _Drawn(flipped, crop, resize_shape(width, height, rng.choice(self.scales), self.max_size))

    def _draw_region(self, size: tuple[int, int], rng: random.Random) -> Region:
        width, height = (rng.randint(min(self.crop_min, side), min(self.crop_max, side)) for side in size)
        top = rng.randint(0, size[1] - height)
        left = rng.randint(0, size[0] - width)
        return left, top, left + width, top + height


@dataclass(frozen=True)
class Resize:
    """The transform of evaluation: a resize that keeps the aspect ratio.

    Args:
        shorter: length in pixels of the shorter side.
        longest: maximum length of the longer side; None for no limit.

    Raises:
        ValueError: An argument is out of range.
    """

    shorter: int = 800
    longest: int | None = 1333

    def __post_init__(self) -> None:
        for name, side in (("shorter", self.shorter), ("longest", self.longest)):
            if not is_side(side) and (name, side) != ("longest", None):
                raise ValueError(f"resize: {name} must be an integer from 1 to {MAX_SIDE}, got {side}")

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, rng: random.Random) -> Labeled:
        height, width = image.shape[:2]
        return Labeled(*_resize(image, boxes, self.draw_size(width, height, rng)), labels)

    def draw_size(self, width: int, height: int, rng: random.Random) -> tuple[int, int]:
        """Return the (width, height) to which an image of this size is resized; nothing is drawn."""
        return resize_shape(width, height, self.shorter, self.longest)


def clip_boxes(boxes: Tensor, labels: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Clip boxes to an image and remove those without area.

    Args:
        boxes: Boxes [t,4], xyxy in pixels.
        labels: Labels [t].
        width: Width of the image in pixels.
        height: Height of the image in pixels.

    Returns:
        The remaining boxes [n,4] and labels [n].
    """
    limits = torch.tensor([width, height, width, height], dtype=boxes.dtype)
    clipped = boxes.clamp(min=0).minimum(limits)
    keep = (clipped[:, 2:] > clipped[:, :2]).all(1)
    return clipped[keep], labels[keep]


def _mirror_boxes(boxes: Tensor, width: int) -> Tensor:
    left, top, right, bottom = boxes.unbind(1)
    return torch.stack([width - right, top, width - left, bottom], dim=1)


def _mirror_region(region: Region, width: int) -> Region:
    left, top, right, bottom = region
    return width - right, top, width - left, bottom


def _resize(image: Tensor, boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    ratio = torch.tensor([size[0] / image.shape[1], size[1] / image.shape[0]] * 2)
    return resize_pixels(image, *size), boxes * ratio


def _resize_and_crop(
    image: Tensor, boxes: Tensor, labels: Tensor, size: tuple[int, int], region: Region, flipped: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Crop the region of the image that a resize to ``size`` gives; the region is one of the mirrored image if flipped.

    Where the complete image would take longer, and memory without bound if it is long and thin and its longer side
    unlimited, only the region is computed.
    """
    left, top, right, bottom = _mirror_region(region, size[0]) if flipped else region
    height, width = image.shape[:2]
    across, down = width / size[0], height / size[1]  # pixels of the image per pixel after the resize
    shape = right - left, bottom - top
    if size[0] * size[1] <= _PILLOW_RATIO * shape[0] * shape[1]:
        cropped = resize_pixels(image, *size)[top:bottom, left:right]
    else:
        source = (left * across, top * down, min(right * across, width), min(bottom * down, height))
        complete = Image.fromarray(image.numpy())
        cropped = torch.from_numpy(np.array(complete.resize(shape, Image.Resampling.BILINEAR, box=source)))
    shifted = boxes / torch.tensor([across, down] * 2) - torch.tensor([*region[:2], *region[:2]])
    return cropped, *clip_boxes(shifted, labels, *shape)


def _cut(
    image: Tensor, boxes: Tensor, labels: Tensor, size: tuple[int, int], region: Region, flipped: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut out of the image what a resize to ``size`` would bring to the region, rounded to pixels."""
    height, width = image.shape[:2]
    left, right = _whole_pixels(region[0], region[2], width / size[0], width)
    top, bottom = _whole_pixels(region[1], region[3], height / size[1], height)
    shifted = boxes - torch.tensor([left, top, left, top])
    kept = clip_boxes(shifted, labels, right - left, bottom - top)
    columns = slice(width - right, width - left) if flipped else slice(left, right)
    return image[top:bottom, columns], *kept


def _whole_pixels(low: int, high: int, scale: float, limit: int) -> tuple[int, int]:
    """The interval of at least one pixel that is nearest to the scaled one."""
    begin = min(round(low * scale), limit - 1)
    return begin, min(max(round(high * scale), begin + 1), limit)

"""Transforms of images and their boxes.

A transform takes an image, its boxes (xyxy in pixels), their labels and a random number generator, and returns the
transformed image, boxes and labels.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from PIL import Image
from torch import Tensor

from detr_fast.images import MAX_SIDE, is_side, resize_shape

Labeled: TypeAlias = tuple[Image.Image, Tensor, Tensor]  # RGB image, boxes float32 [t,4], labels int64 [t]
Region: TypeAlias = tuple[int, int, int, int]  # left, top, right, bottom in pixels
Transform: TypeAlias = Callable[[Image.Image, Tensor, Tensor, random.Random], Labeled]


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
    def mmdet(cls) -> Augmentation:
        """The augmentation of MMDetection, which limits the longer side before the crop to 1333 pixels."""
        return cls(middle_max_size=1333)

    def __call__(self, image: Image.Image, boxes: Tensor, labels: Tensor, rng: random.Random) -> Labeled:
        if rng.random() < self.flip:
            image, boxes = _flip(image, boxes)
        if rng.random() >= 1 - self.crop:
            shorter = rng.choice(self.middle_scales)
            size = resize_shape(image.width, image.height, shorter, self.middle_max_size)
            image, boxes, labels = _resize_and_crop(image, boxes, labels, size, self._draw_region(size, rng))
        image, boxes = _resize(image, boxes, rng.choice(self.scales), self.max_size)
        return image, boxes, labels

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

    def __call__(self, image: Image.Image, boxes: Tensor, labels: Tensor, rng: random.Random) -> Labeled:
        return *_resize(image, boxes, self.shorter, self.longest), labels


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


def _flip(image: Image.Image, boxes: Tensor) -> tuple[Image.Image, Tensor]:
    left, top, right, bottom = boxes.unbind(1)
    mirrored = torch.stack([image.width - right, top, image.width - left, bottom], dim=1)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), mirrored


def _resize(image: Image.Image, boxes: Tensor, shorter: int, longest: int | None) -> tuple[Image.Image, Tensor]:
    width, height = resize_shape(image.width, image.height, shorter, longest)
    ratio = torch.tensor([width / image.width, height / image.height] * 2)
    return image.resize((width, height), Image.Resampling.BILINEAR), boxes * ratio


def _resize_and_crop(
    image: Image.Image, boxes: Tensor, labels: Tensor, size: tuple[int, int], region: Region
) -> Labeled:
    """Crop the region of the image that a resize to ``size`` gives.

    Only the region is computed: the resize of a long thin image, whose longer side may be unlimited, would take
    memory without bound.
    """
    left, top, right, bottom = region
    across, down = image.width / size[0], image.height / size[1]  # pixels of the image per pixel after the resize
    source = (left * across, top * down, min(right * across, image.width), min(bottom * down, image.height))
    cropped = image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=source)
    shifted = boxes / torch.tensor([across, down] * 2) - torch.tensor([left, top, left, top])
    return cropped, *clip_boxes(shifted, labels, right - left, bottom - top)

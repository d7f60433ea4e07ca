"""What happens to a picture and its boxes before the network sees them.

A transform takes a picture, its boxes (xyxy in pixels), their labels and a source of random numbers, and returns the
first three anew.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from PIL import Image
from torch import Tensor

from detr_fast.images import resize_shape

Labelled: TypeAlias = tuple[Image.Image, Tensor, Tensor]  # RGB picture, boxes float32 [t,4], labels int64 [t]
Transform: TypeAlias = Callable[[Image.Image, Tensor, Tensor, random.Random], Labelled]


@dataclass(frozen=True)
class Augmentation:
    """The training augmentation of DETR (Carion et al. 2020, section 4).

    A horizontal flip; then either a resize, or a resize to a middle size, a random crop and the first resize again.
    Every resize keeps the aspect ratio and names the length of the shorter side.

    Attributes:
        scales: shorter sides in pixels, one of which is drawn for the final resize.
        max_size: limit of the longer side there, None for no limit.
        flip: probability of the flip.
        crop: probability of the way with the crop.
        middle_scales: shorter sides before the crop.
        middle_max_size: limit of the longer side there.
        crop_min: smallest side of the crop in pixels; a shorter side of the picture is taken whole.
        crop_max: largest side of the crop.
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
            if not sizes or min(sizes) < 1:
                raise ValueError(f"augmentation: {name} must hold at least one length above 0, got {sizes}")
        for name in ("flip", "crop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augmentation: {name} is a probability from 0 to 1, got {getattr(self, name)}")
        if not 1 <= self.crop_min <= self.crop_max:
            raise ValueError(
                f"augmentation: 1 <= crop_min <= crop_max must hold, got {self.crop_min} and {self.crop_max}"
            )

    @classmethod
    def detr(cls) -> Augmentation:
        """As in the original code: the middle resize has no limit."""
        return cls()

    @classmethod
    def mmdet(cls) -> Augmentation:
        """As in MMDetection: the middle resize is limited to 1333 as well."""
        return cls(middle_max_size=1333)

    def __call__(self, image: Image.Image, boxes: Tensor, labels: Tensor, rng: random.Random) -> Labelled:
        if rng.random() < self.flip:
            image, boxes = _flip(image, boxes)
        if rng.random() >= 1 - self.crop:
            image, boxes = _resize(image, boxes, rng.choice(self.middle_scales), self.middle_max_size)
            image, boxes, labels = _crop(image, boxes, labels, self._draw_region(image, rng))
        image, boxes = _resize(image, boxes, rng.choice(self.scales), self.max_size)
        return image, boxes, labels

    def _draw_region(self, image: Image.Image, rng: random.Random) -> tuple[int, int, int, int]:
        width, height = (
            rng.randint(min(self.crop_min, side), min(self.crop_max, side)) for side in (image.width, image.height)
        )
        top = rng.randint(0, image.height - height)
        left = rng.randint(0, image.width - width)
        return left, top, left + width, top + height


@dataclass(frozen=True)
class Resize:
    """The transform of evaluation: the shorter side becomes ``shorter`` pixels, the longer at most ``longest``."""

    shorter: int = 800
    longest: int | None = 1333

    def __post_init__(self) -> None:
        if self.shorter < 1:
            raise ValueError(f"resize: shorter must be above 0, got {self.shorter}")

    def __call__(self, image: Image.Image, boxes: Tensor, labels: Tensor, rng: random.Random) -> Labelled:
        return *_resize(image, boxes, self.shorter, self.longest), labels


def clip_boxes(boxes: Tensor, labels: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Boxes [t,4] (xyxy) cut to a picture of that size, and their labels, without those that have no area left."""
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


def _crop(image: Image.Image, boxes: Tensor, labels: Tensor, region: tuple[int, int, int, int]) -> Labelled:
    left, top, right, bottom = region
    shifted = boxes - torch.tensor([left, top, left, top])
    return image.crop(region), *clip_boxes(shifted, labels, right - left, bottom - top)

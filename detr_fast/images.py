"""Pictures on their way into the network: reading, the size they are resized to, normalising and padding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MEAN = (
    0.485,
    0.456,
    0.406,
)  # of ImageNet's RGB values in [0,1], the numbers every torchvision backbone was trained with
STD = (0.229, 0.224, 0.225)


class ImageError(ValueError):
    """A picture file cannot be read; the message names the file and the cause."""


def read_image(path: str | Path) -> Image.Image:
    """Decode a picture completely and return it as RGB, its pixels where the file stores them.

    An EXIF orientation is not applied: COCO boxes refer to the stored pixels. Sixteen-bit greys are scaled to eight
    bits, transparency is dropped.

    Raises:
        ImageError: the file is missing, truncated, no picture, or larger than Pillow's decompression-bomb limit.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except Exception as error:  # Pillow answers broken files with OSError, SyntaxError, ValueError, struct.error, ...
        raise ImageError(f"{path}: cannot read this image: {_cause(error)}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as RGB: sixteen-bit greys scaled to eight bits, transparency dropped."""
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint16) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def resize_shape(width: int, height: int, shorter: int, longest: int | None = None) -> tuple[int, int]:
    """The (width, height) of a picture whose shorter side becomes ``shorter``, keeping its aspect ratio.

    Where the longer side would exceed ``longest``, the shorter one is made as small as that takes. The rounding is
    DETR's: the limited shorter side to the nearest integer, the longer side down. A picture so long that its shorter
    side would vanish becomes ``longest`` pixels by one.
    """
    small, large = min(width, height), max(width, height)
    if longest is not None and large / small * shorter > longest:
        shorter = round(longest * small / large)
        if shorter == 0:
            return (longest, 1) if width > height else (1, longest)
    if small == shorter:
        return width, height
    if width < height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as float32 [3,H,W], normalised with ImageNet's mean and standard deviation."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # uint8 [3,H,W]
    scaled = pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    return scaled.sub_(torch.tensor(MEAN).view(3, 1, 1)).div_(torch.tensor(STD).view(3, 1, 1))


def pad_images(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack pictures of any sizes, zeros to their right and below.

    Args:
        images: B tensors [3,h,w] of one dtype and device.

    Returns:
        The batch [B,3,H,W], H and W being the largest h and w, and its mask, bool [B,H,W], True where it is padding.
        Without images both have H = W = 0.
    """
    if not images:
        return torch.zeros(0, 3, 0, 0), torch.zeros(0, 0, 0, dtype=torch.bool)
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    batch = images[0].new_zeros(len(images), 3, height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool, device=batch.device)
    for row, image in enumerate(images):
        _, h, w = image.shape
        batch[row, :, :h, :w] = image
        mask[row, :h, :w] = False
    return batch, mask


def _cause(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return str(error) or type(error).__name__

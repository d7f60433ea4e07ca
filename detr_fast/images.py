"""Images as inputs of the network: reading, the size after resizing, normalization and padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

# Mean and standard deviation of the RGB values of ImageNet in [0,1], with which torchvision's backbones are trained.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
MAX_SIDE = 2**14  # largest length in pixels to which images may be resized

SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

# What turns an image upright, by its EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """An image cannot be read; the message gives the file and the cause."""


class VideoError(ImageError):
    """A video cannot be read or written; the message gives the file and the cause."""


class Decoded(NamedTuple):
    """A decoded image file.

    Attributes:
        pixels: The pixels as they are stored, uint8 [h,w,3].
        size: (width, height) of the file, which has more pixels if it was reduced while it was decoded.
        orientation: The EXIF orientation, 1 to 8; 1 stands for an image that is stored upright.
        white: Value that was taken for white; None if the mode of the image determines it.
    """

    pixels: Tensor
    size: tuple[int, int]
    orientation: int
    white: int | None

    def upright(self) -> Decoded:
        """Return the image as viewers display it."""
        turn = _TURNS.get(self.orientation)
        if turn is None:
            return self
        turned = Image.fromarray(self.pixels.numpy()).transpose(turn)
        return Decoded(torch.from_numpy(np.array(turned)), turned.size, 1, self.white)


def read_image(path: str | Path) -> Image.Image:
    """Decode an image file completely, convert it to RGB, and turn it upright by its EXIF orientation.

    Args:
        path: The image file.

    Raises:
        ImageError: As for :func:`decode_image`.
    """
    return Image.fromarray(decode_image(path).upright().pixels.numpy())


def upright_size(path: str | Path) -> tuple[int, int]:
    """Return the (width, height) of an image file as viewers display it; its pixels are not decoded.

    Args:
        path: The image file.

    Raises:
        ImageError: The file is missing, not an image, or larger than Pillow's decompression bomb limit.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            swaps = 5 <= image.getexif().get(ExifTags.Base.Orientation, 1) <= 8
    except Exception as error:  # as in _decode_with_pillow
        raise ImageError(f"{path}: cannot read this image: {_cause(error)}") from error
    return (height, width) if swaps else (width, height)


def decode_image(path: str | Path, fewest: Callable[[int, int], tuple[int, int]] | None = None) -> Decoded:
    """Decode an image file completely and convert it to RGB, as it is stored.

    Upright RGB files in JPEG format are decoded by simplejpeg where it is installed, which has the same decoder as
    Pillow and is faster around it. Such a file can be reduced to a half or less while it is decoded, which takes less
    time than to decode it completely and to shrink the result.

    Args:
        path: The image file.
        fewest: From the width and the height of the file to the least width and height that are needed; None for all
            pixels.

    Raises:
        ImageError: The file is missing, truncated, not an image, or larger than Pillow's decompression bomb limit; or
            its values are not in a range that :func:`to_rgb` scales.
    """
    decoded = _decode_jpeg(path, fewest) if _has_simplejpeg() else None
    return decoded or _decode_with_pillow(path)


def _decode_with_pillow(path: str | Path) -> Decoded:
    try:
        with Image.open(path) as image:
            image.load()  # which turns a TIFF upright
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            pixels = torch.from_numpy(np.array(to_rgb(image)))
            return Decoded(pixels, image.size, orientation if orientation in _TURNS else 1, _white(image))
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... for broken files
        raise ImageError(f"{path}: cannot read this image: {_cause(error)}") from error


@cache
def _has_simplejpeg() -> bool:
    return find_spec("simplejpeg") is not None


def _decode_jpeg(path: str | Path, fewest: Callable[[int, int], tuple[int, int]] | None) -> Decoded | None:
    """Decode an upright RGB file in JPEG format without a fault; return None for any other file."""
    import simplejpeg

    try:
        with open(path, "rb") as file:
            begin = file.read(3)
            if begin != b"\xff\xd8\xff":
                return None
            data = begin + file.read()
        with Image.open(BytesIO(data)) as image:  # which reads the header only
            is_upright = image.getexif().get(ExifTags.Base.Orientation, 1) not in _TURNS
            if image.format != "JPEG" or image.mode != "RGB" or not is_upright:
                return None
            size = image.size
        width, height = size if fewest is None else fewest(*size)
        reduced = {"min_width": width, "min_height": height, "min_factor": 2}
        is_whole = 2 * width > size[0] or 2 * height > size[1]
        pixels = simplejpeg.decode_jpeg(data, "RGB", **({} if is_whole else reduced))
        return Decoded(torch.from_numpy(pixels), size, 1, None)
    except Exception:  # Pillow decides whether the file can be read, and says why it cannot
        return None


def resize_pixels(image: Tensor, width: int, height: int) -> Tensor:
    """Resize an image by bilinear interpolation, antialiased where it shrinks.

    The result is that of Pillow to one level of 255.

    Args:
        image: The pixels, uint8 [h,w,3].
        width: Width after the resize.
        height: Height after the resize.

    Returns:
        The pixels, uint8 [height,width,3].
    """
    if image.shape[:2] == (height, width):
        return image
    batch = image.unsqueeze(0).permute(0, 3, 1, 2)  # channels last in memory, as PyTorch knows by its strides
    resized = torch.nn.functional.interpolate(batch, (height, width), mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1).squeeze(0)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB and drop transparency.

    Grayscale integers of more than 8 bits are scaled from 8, 12 or 16 bits, the least of them that represents the
    values of the image. Floating point values are scaled from [0,1], or from [0,255] if one of them is above 1.

    Args:
        image: The image.

    Raises:
        ImageError: Floating point values or integers are outside the ranges.
    """
    white = _white(image)
    if white is not None and image.mode == "F":
        return Image.fromarray(np.rint(np.asarray(image) * (255 / white)).astype(np.uint8)).convert("RGB")
    if white is not None:
        gray = np.asarray(image).astype(np.int64) >> (white.bit_length() - 8)
        return Image.fromarray(gray.astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _white(image: Image.Image) -> int | None:
    """Return the value of white in a grayscale image of integers or floating point values; None for other modes."""
    if image.mode == "F":
        low, high = _range(image)  # NaN if any value is
        if not 0 <= low <= high <= 255:
            raise ImageError(f"floating point values must be within [0,1] or [0,255], got {low:g} to {high:g}")
        return 255 if high > 1 else 1
    if not image.mode.startswith("I"):
        return None
    low, high = _range(image)
    for white in (2**8 - 1, 2**12 - 1, 2**16 - 1):
        if low >= 0 and high <= white:
            return white
    raise ImageError(f"integers must have at most 16 bits, got {low:.0f} to {high:.0f}")


def _range(image: Image.Image) -> tuple[float, float]:
    values = np.asarray(image)
    return float(values.min()), float(values.max())


def is_side(value: object) -> bool:
    """Return whether ``value`` is an integer from 1 to :data:`MAX_SIDE`."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_SIDE


def resize_shape(width: int, height: int, shorter: int, longest: int | None = None) -> tuple[int, int]:
    """Compute the size of an image after a resize that keeps its aspect ratio.

    The shorter side becomes ``shorter``, or less if the longer side would exceed ``longest``. Sides are rounded as in
    facebookresearch/detr: a limited shorter side to the nearest integer, the longer side down. If the shorter side
    would become 0, the size is ``longest`` by 1.

    Args:
        width: Width of the image.
        height: Height of the image.
        shorter: Length of the shorter side after the resize.
        longest: Maximum length of the longer side after the resize; None for no limit.

    Returns:
        (width, height) after the resize.
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


def fit_shape(size: tuple[int, int], limit: tuple[int, int]) -> tuple[int, int]:
    """Compute the size of an image that is scaled down, keeping its aspect ratio, as far as it exceeds a limit.

    Args:
        size: (height, width) of the image.
        limit: Maximum (height, width).

    Returns:
        (height, width), the sides rounded down to at least 1; those of the image if it is within the limit.
    """
    height, width = size
    if height <= limit[0] and width <= limit[1]:
        return size
    if limit[0] * width <= limit[1] * height:
        return limit[0], max(1, width * limit[0] // height)
    return max(1, height * limit[1] // width), limit[1]


def to_tensor(image: Image.Image) -> Tensor:
    """Convert an RGB image to float32 [3,H,W], normalized by the mean and standard deviation of ImageNet."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # uint8 [3,H,W]
    scaled = pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    return scaled.sub_(torch.tensor(MEAN).view(3, 1, 1)).div_(torch.tensor(STD).view(3, 1, 1))


def pad_images(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack images of different sizes, padded with zeros on the right and at the bottom.

    Args:
        images: B tensors [3,h,w] of the same dtype and device.

    Returns:
        The batch [B,3,H,W], where H and W are the largest h and w, and its padding mask, bool [B,H,W], True where an
        image is padded. Without images H = W = 0.
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

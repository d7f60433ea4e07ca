"""Drawing boxes and attention on images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from detr_fast.fonts import load_font
from detr_fast.text import escape

MIN_SIZE = 320  # pixels: images whose longer side is shorter are enlarged, so that captions are legible


class _Rectangle(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def moved(self, x: float, y: float) -> _Rectangle:
        """Return the rectangle with its upper left corner at (x, y)."""
        return _Rectangle(x, y, x + self.right - self.left, y + self.bottom - self.top)

    def overlaps(self, other: _Rectangle) -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


def draw_boxes(
    image: Image.Image, boxes: Tensor, labels: Tensor, names: Sequence[str], scores: Tensor | None = None
) -> Image.Image:
    """Draw boxes with captions on a copy of an image; a small image is enlarged.

    Captions do not cover each other as long as there is room, and remain within the image.

    Args:
        image: The image.
        boxes: Boxes [n,4], xyxy in pixels.
        labels: Labels int64 [n], each drawn in a color of its own.
        names: Name of each label; a label without a name is drawn as a number.
        scores: Scores [n] for the captions. Boxes of higher scores are drawn over those of lower scores.

    Returns:
        The drawing, RGB.
    """
    canvas, factor = _enlarge(image)
    draw = ImageDraw.Draw(canvas)
    line = _line_width(canvas)
    size = max(12, max(canvas.size) // 30)
    order = list(range(len(boxes))) if scores is None else scores.argsort().tolist()
    corners = [_Rectangle(*(box * factor).tolist()) for box in boxes]
    for k in order:
        draw.rectangle(corners[k], outline=_color(int(labels[k])), width=line)
    placed: list[_Rectangle] = []
    for k in reversed(order):  # the captions of the highest scores get the best places
        label = int(labels[k])
        name = escape(names[label]) if label < len(names) else str(label)
        text, font = load_font(name if scores is None else f"{name} {float(scores[k]):.2f}", size)
        _, _, width, height = draw.textbbox((0, 0), text, font=font)
        place = _place(_Rectangle(0, 0, width + 2, height + 2), corners[k], canvas.size, placed)
        draw.rectangle(place, fill=_color(label))
        draw.text((place.left + 1, place.top), text, fill="black", font=font)
        placed.append(place)
    return canvas


def draw_attention(image: Image.Image, weights: Tensor, box: Tensor | None = None) -> Image.Image:
    """Draw attention weights over a grayscale copy of an image, from blue for the least to yellow for the most.

    A small image is enlarged.

    Args:
        image: The image.
        weights: Attention weights of the cells of the feature map [h,w], such as the mean of the heads of a query of
            :meth:`detr_fast.DETR.attention`.
        box: The detection of the query [4], xyxy in pixels, which is drawn as well.

    Returns:
        The drawing, RGB.
    """
    weights = weights.float()
    spread = (weights - weights.min()) / (weights.max() - weights.min()).clamp(min=1e-12)
    canvas, factor = _enlarge(image)
    heat = Image.fromarray((spread * 255).round().byte().numpy()).resize(canvas.size, Image.Resampling.BICUBIC)
    colored = ImageOps.colorize(heat, black=(30, 20, 120), mid=(220, 60, 80), white=(255, 240, 60))
    drawing = Image.blend(ImageOps.grayscale(canvas).convert("RGB"), colored, 0.6)
    if box is not None:
        corners = _Rectangle(*(box * factor).tolist())
        ImageDraw.Draw(drawing).rectangle(corners, outline="white", width=_line_width(canvas))
    return drawing


def _enlarge(image: Image.Image) -> tuple[Image.Image, int]:
    """Return an RGB copy of an image, and the factor by which it was enlarged."""
    factor = max(1, -(-MIN_SIZE // max(image.size)))
    size = (image.width * factor, image.height * factor)
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST), factor


def _line_width(canvas: Image.Image) -> int:
    return max(2, max(canvas.size) // 250)


def _place(caption: _Rectangle, box: _Rectangle, size: tuple[int, int], placed: Sequence[_Rectangle]) -> _Rectangle:
    """Move a caption to the first place along the edges of its box where it is visible and covers no other.

    Where there is none, it stands inside the upper left corner of the box, over the others.
    """
    width, height = caption.right, caption.bottom
    places = []
    for y in (box.top, box.top - height, box.bottom - height, box.bottom):
        for x in (box.left, box.right - width):
            # Within the image.
            visible_x, visible_y = min(x, size[0] - width), min(y, size[1] - height)
            places.append(caption.moved(max(visible_x, 0), max(visible_y, 0)))
    steps = (k * height for k in range(1, int(max(box.bottom - box.top, 0) // height)))
    places += [caption.moved(places[0].left, places[0].top + step) for step in steps]
    free = (place for place in places if not any(place.overlaps(other) for other in placed))
    return next(free, places[0])


def _color(label: int) -> tuple[int, int, int]:
    hue = (label * 0.618034) % 1.0  # multiples of the golden ratio give successive labels distinct hues
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)

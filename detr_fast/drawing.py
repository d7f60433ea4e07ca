"""Drawing boxes on images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from detr_fast.text import escape

MIN_SIZE = 320  # pixels: images whose longer side is shorter are enlarged, so that captions are legible


def draw_boxes(
    image: Image.Image, boxes: Tensor, labels: Tensor, names: Sequence[str], scores: Tensor | None = None
) -> Image.Image:
    """Draw boxes with captions on a copy of an image; a small image is enlarged.

    Args:
        image: The image.
        boxes: Boxes [n,4], xyxy in pixels.
        labels: Labels int64 [n].
        names: Name of each label; a label without a name is drawn as a number.
        scores: Scores [n] for the captions. Boxes of higher scores are drawn over those of lower scores.

    Returns:
        The drawing, RGB.
    """
    factor = max(1, -(-MIN_SIZE // max(image.size)))
    canvas = image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    line = max(2, max(canvas.size) // 250)
    font = ImageFont.load_default(size=max(12, max(canvas.size) // 30))
    order = range(len(boxes)) if scores is None else scores.argsort().tolist()
    for k in order:
        label = int(labels[k])
        color = _color(label)
        corners = tuple((boxes[k] * factor).tolist())
        draw.rectangle(corners, outline=color, width=line)
        text = escape(names[label]) if label < len(names) else str(label)
        if scores is not None:
            text += f" {float(scores[k]):.2f}"
        _caption(draw, text, corners[0], corners[1], color, font)
    return canvas


def _caption(
    draw: ImageDraw.ImageDraw,
    text: str,
    left: float,
    top: float,
    color: tuple[int, int, int],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    box = draw.textbbox((left, top), text, font=font)
    draw.rectangle((box[0], box[1], box[2] + 2, box[3] + 2), fill=color)
    draw.text((left + 1, top), text, fill="black", font=font)


def _color(label: int) -> tuple[int, int, int]:
    hue = (label * 0.618034) % 1.0  # multiples of the golden ratio give successive labels distinct hues
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)

"""A generated data set in COCO detection format: images of circles, rectangles and triangles."""

from __future__ import annotations

import json
import random
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from detr_fast.data.annotations import Category
from detr_fast.data.faults import DataError

# The ids have gaps and are not in alphabetical order of the names, as in real data sets.
SHAPE_CATEGORIES = (Category(3, "triangle"), Category(7, "circle"), Category(12, "rectangle"))

_RECIPE = 1  # raise it when the same parameters generate different images
_PARAMETERS = "shapes.json"
_SIDES = (0.15, 0.45)  # of the box of a shape, as fractions of the image's sides
_MIN_VISIBLE = 0.6  # fraction of the pixels of each shape that later shapes leave uncovered
_MIN_CONTRAST = 70  # between any two shapes, and a shape and the background, in the channel of the largest difference
_ATTEMPTS = 10  # to place a shape before it is left out


@dataclass(frozen=True)
class _Shape:
    category: Category
    visible: np.ndarray  # bool [size,size]: the pixels that no later shape covers
    num_pixels: int  # covered pixels included


def make_shapes(
    directory: str | Path, num_train: int, num_val: int, image_size: int = 64, max_objects: int = 5, seed: int = 0
) -> Path:
    """Generate a data set of shapes, unless the directory already contains one that was made with these arguments.

    The layout is that of COCO: ``train/*.png``, ``val/*.png``, ``annotations/instances_train.json`` and
    ``annotations/instances_val.json``. Each image shows 1 to ``max_objects`` shapes, which may overlap, on a plain,
    shaded or noisy background. A box encloses the visible pixels of a shape exactly. The directory is created by a
    rename once all files are written, so that an interrupted call leaves no incomplete data set.

    Args:
        directory: Directory of the data set.
        num_train: Number of images in the training split.
        num_val: Number of images in the validation split.
        image_size: Width and height of the images in pixels, at least 32.
        max_objects: Maximum number of shapes in an image.
        seed: Seed of all random choices.

    Returns:
        ``directory`` as a path.

    Raises:
        DataError: ``directory`` contains other files, or shapes that were made with other arguments.
        ValueError: An argument is out of range.
    """
    if min(num_train, num_val, max_objects) < 1 or image_size < 32:
        raise ValueError("shapes: num_train, num_val and max_objects must be above 0, image_size at least 32")
    directory = Path(directory)
    parameters = {
        "recipe": _RECIPE,
        "num_train": num_train,
        "num_val": num_val,
        "image_size": image_size,
        "max_objects": max_objects,
        "seed": seed,
    }
    if _is_made(directory, parameters):
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as scratch:
        unfinished = Path(scratch) / "shapes"
        _write_split(unfinished, "train", num_train, image_size, max_objects, seed)
        _write_split(unfinished, "val", num_val, image_size, max_objects, seed)
        (unfinished / _PARAMETERS).write_text(json.dumps(parameters))
        try:
            unfinished.rename(directory)
        except OSError:
            if not _is_made(directory, parameters):  # else another process has made it meanwhile
                raise
    return directory


def _is_made(directory: Path, parameters: dict[str, int]) -> bool:
    """Return whether the data set exists; raise DataError if the directory contains anything else."""
    try:
        found = json.loads((directory / _PARAMETERS).read_text())
    except FileNotFoundError:
        if directory.is_dir() and any(directory.iterdir()):
            raise DataError(
                f"{directory}: is not empty and contains no generated shapes; choose another directory"
            ) from None
        return False
    if found != parameters:
        raise DataError(
            f"{directory}: contains shapes made with {found}, not {parameters}; delete it or choose another directory"
        )
    return True


def _write_split(root: Path, split: str, count: int, size: int, max_objects: int, seed: int) -> None:
    folder = root / split
    folder.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        pixels, shapes = _draw_image(size, max_objects, random.Random(f"{seed} {split} {index}"))
        name = f"{index:06d}.png"
        Image.fromarray(pixels).save(folder / name, compress_level=1)
        images.append({"id": index + 1, "file_name": name, "width": size, "height": size})
        for shape in shapes:
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **_annotation(shape)})
    content = {"images": images, "annotations": annotations, "categories": [c._asdict() for c in SHAPE_CATEGORIES]}
    file = root / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))


def _annotation(shape: _Shape) -> dict[str, Any]:
    rows, columns = np.nonzero(shape.visible)
    left, top = int(columns.min()), int(rows.min())
    return {
        "category_id": shape.category.id,
        "bbox": [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top],
        "area": len(rows),
        "iscrowd": 0,
    }


def _draw_image(size: int, max_objects: int, rng: random.Random) -> tuple[np.ndarray, list[_Shape]]:
    """Return pixels, uint8 [size,size,3], and the shapes in them from back to front."""
    pixels = _background(size, rng)
    colors = [pixels.mean((0, 1))]
    shapes: list[_Shape] = []
    for _ in range(rng.randint(1, max_objects)):
        category = rng.choice(SHAPE_CATEGORIES)
        mask = _place(category, size, shapes, rng)
        if mask is None:
            continue
        colors.append(_new_color(colors, rng))
        pixels[mask] = colors[-1]
        shapes = [replace(shape, visible=shape.visible & ~mask) for shape in shapes]
        shapes.append(_Shape(category, mask, int(mask.sum())))
    return pixels, shapes


def _background(size: int, rng: random.Random) -> np.ndarray:
    base = np.array([rng.uniform(0, 255) for _ in range(3)])
    kind = rng.choice(("plain", "shaded", "noisy"))
    if kind == "shaded":
        ramp = np.linspace(-1, 1, size)
        across, down = (np.array([rng.uniform(-20, 20) for _ in range(3)]) for _ in range(2))
        texture = ramp[None, :, None] * across + ramp[:, None, None] * down
    elif kind == "noisy":
        noise = np.frombuffer(rng.randbytes(3 * size * size), dtype=np.uint8).reshape(size, size, 3)
        texture = (noise - 127.5) / 127.5 * rng.uniform(10, 30)
    else:
        texture = np.zeros((size, size, 3))
    return np.clip(base + texture, 0, 255).astype(np.uint8)


def _place(category: Category, size: int, shapes: list[_Shape], rng: random.Random) -> np.ndarray | None:
    """Return the pixels of a new shape, bool [size,size]; None if all attempts cover too much of other shapes."""
    for _ in range(_ATTEMPTS):
        mask = _random_mask(category.name, size, rng)
        if all((shape.visible & ~mask).sum() >= _MIN_VISIBLE * shape.num_pixels for shape in shapes):
            return mask
    return None


def _random_mask(name: str, size: int, rng: random.Random) -> np.ndarray:
    width, height = (round(rng.uniform(*_SIDES) * size) for _ in range(2))
    if name == "circle":
        height = width
    left, top = rng.randint(0, size - width), rng.randint(0, size - height)
    right, bottom = left + width - 1, top + height - 1
    canvas = Image.new("1", (size, size))
    draw = ImageDraw.Draw(canvas)
    if name == "circle":
        draw.ellipse((left, top, right, bottom), fill=1)
    elif name == "rectangle":
        draw.rectangle((left, top, right, bottom), fill=1)
    else:
        draw.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], fill=1)
    return np.array(canvas)


def _new_color(colors: list[np.ndarray], rng: random.Random) -> np.ndarray:
    while True:
        color = np.array([rng.randint(0, 255) for _ in range(3)])
        if all(np.abs(color - other).max() >= _MIN_CONTRAST for other in colors):
            return color

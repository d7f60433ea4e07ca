"""Prediction for image files: drawings of the detections, and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from detr_fast.drawing import draw_boxes
from detr_fast.images import ImageError, read_image
from detr_fast.models import DETR
from detr_fast.training.files import write_atomically

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def predict_files(
    model: str | Path, images: Sequence[str | Path], output: Path, *, threshold: float = 0.5
) -> list[str]:
    """Detect objects in image files, and write drawings and predictions.json.

    The JSON file is a list with ``file``, ``drawing`` and ``detections`` of each image. A detection has ``label``,
    ``score``, ``box`` (x1, y1, x2, y2 in pixels), and ``category_id`` and ``name`` if the model has categories.

    Args:
        model: A directory written by ``save_pretrained``, or the id of a repository on the Hugging Face Hub.
        images: Image files, and directories of images.
        output: Directory for the drawings and the JSON file.
        threshold: Minimum score of the detections.

    Returns:
        A message for each image that could not be read; they are skipped.

    Raises:
        CheckpointError: The model cannot be loaded.
        FileNotFoundError: A file or directory does not exist, or a directory contains no image.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    detector = DETR.from_pretrained(model).to(device)
    output.mkdir(parents=True, exist_ok=True)
    records, failures = [], []
    for number, path in enumerate(tqdm(list(_expand(images)), unit="image")):
        try:
            image = read_image(path)
        except ImageError as error:
            failures.append(str(error))
            continue
        # Several directories may contain images of the same name.
        drawing = output / f"{number:05d}-{path.stem}.png"
        records.append(_predict(detector, path, image, drawing, threshold))
    write_atomically(output / "predictions.json", json.dumps(records, indent=1) + "\n")
    return failures


def _predict(model: DETR, path: Path, image: Image.Image, drawing: Path, threshold: float) -> dict[str, Any]:
    (found,) = model.predict(image, threshold=threshold)
    names = [category["name"] for category in model.categories or ()]
    draw_boxes(image, found["boxes"], found["labels"], names, found["scores"]).save(drawing)
    return {"file": str(path), "drawing": drawing.name, "detections": list(_detections(model, found))}


def _detections(model: DETR, found: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
    categories = model.categories or []
    for score, label, box in zip(*(found[key].tolist() for key in ("scores", "labels", "boxes")), strict=True):
        category = {}
        if label < len(categories):
            category = {"category_id": categories[label]["id"], "name": categories[label]["name"]}
        yield {"label": label, **category, "score": score, "box": box}


def _expand(images: Sequence[str | Path]) -> Iterator[Path]:
    for path in map(Path, images):
        if not path.is_dir():
            if not path.exists():
                raise FileNotFoundError(f"there is no file or directory {path}")
            yield path
            continue
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not found:
            raise FileNotFoundError(f"{path} contains no image ({', '.join(sorted(SUFFIXES))})")
        yield from found

"""Prediction for image files: drawings of the detections, and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from tqdm import tqdm

from detr_fast.images import SUFFIXES, ImageError, read_image
from detr_fast.models import DETR
from detr_fast.training.files import write_atomically
from detr_fast.training.ranks import check_device


def predict_files(
    model: str | Path,
    images: Sequence[str | Path],
    output: Path,
    *,
    threshold: float = 0.5,
    attention: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> list[str]:
    """Detect objects in image files, and write drawings and predictions.json.

    The JSON file is a list with ``file``, ``drawing`` and ``detections`` of each image. A detection has ``label``,
    ``score``, ``box`` (x1, y1, x2, y2 in pixels), and ``category_id`` and ``name`` if the model has categories.

    Args:
        model: A directory written by ``save_pretrained``, or the id of a repository on the Hugging Face Hub.
        images: Image files, and directories. Of a directory all images are taken, in subdirectories too, without
            hidden files and without those in ``output``.
        output: Directory for the drawings and the JSON file.
        threshold: Minimum score of the detections.
        attention: Whether to write a drawing of each detection, too, of what its query attends to in the last layer of
            the decoder, on average over the heads. Its name ends with ``-attention-`` and the index of the detection.
        device: ``"auto"`` uses a GPU if there is one.

    Returns:
        A message for each image that could not be read; they are skipped.

    Raises:
        CheckpointError: The model cannot be loaded.
        ConfigError: There is no GPU, and ``device`` is ``"cuda"``.
        FileNotFoundError: A file or directory does not exist, or a directory contains no image.
    """
    check_device(device)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    detector = DETR.from_pretrained(model).to(device)
    output.mkdir(parents=True, exist_ok=True)
    records, failures = [], []
    for number, path in enumerate(tqdm(list(_expand(images, output)), unit="image")):
        try:
            image = read_image(path)
        except ImageError as error:
            failures.append(str(error))
            continue
        # Several directories may contain images of the same name.
        drawing = output / f"{number:05d}-{path.stem}.png"
        (found,) = detector.predict(image, threshold=threshold)
        _draw(detector, image, found, drawing, attention=attention)
        records.append({"file": str(path), "drawing": drawing.name, "detections": list(_detections(detector, found))})
    write_atomically(output / "predictions.json", json.dumps(records, indent=1) + "\n")
    return failures


def _draw(model: DETR, image: Image.Image, found: dict[str, Any], drawing: Path, *, attention: bool) -> None:
    from detr_fast.drawing import draw_attention, draw_boxes  # imports matplotlib

    names = [category["name"] for category in model.categories or ()]
    draw_boxes(image, found["boxes"], found["labels"], names, found["scores"]).save(drawing)
    if attention and len(found["boxes"]):
        (weights,) = model.attention(image)  # [heads,Q,h,w]
        maps = weights.mean(0)[found["queries"]]
        for k, (cells, box) in enumerate(zip(maps, found["boxes"], strict=True)):
            draw_attention(image, cells, box).save(drawing.with_stem(f"{drawing.stem}-attention-{k}"))


def _detections(model: DETR, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    categories = model.categories or []
    for score, label, box in zip(*(found[key].tolist() for key in ("scores", "labels", "boxes")), strict=True):
        category = {}
        if label < len(categories):
            category = {"category_id": categories[label]["id"], "name": categories[label]["name"]}
        yield {"label": label, **category, "score": score, "box": box}


def _expand(images: Sequence[str | Path], output: Path) -> Iterator[Path]:
    for path in map(Path, images):
        if not path.is_dir():
            if not path.exists():
                raise FileNotFoundError(f"there is no file or directory {path}")
            yield path
            continue
        found = sorted(file for file in path.rglob("*") if _is_image(file, path, output))
        if not found:
            raise FileNotFoundError(f"{path} contains no image ({', '.join(sorted(SUFFIXES))})")
        yield from found


def _is_image(file: Path, directory: Path, output: Path) -> bool:
    """Return whether a file in a directory is an image to predict, and not a hidden file or an earlier drawing."""
    if file.suffix.lower() not in SUFFIXES or not file.is_file():
        return False
    if any(part.startswith(".") for part in file.relative_to(directory).parts):
        return False
    drawings = output.resolve()
    return directory.resolve() not in drawings.parents or drawings not in file.resolve().parents

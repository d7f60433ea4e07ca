"""Prediction for image and video files: drawings of the detections, and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from tqdm import tqdm

from detr_fast.extras import explaining_missing
from detr_fast.images import SUFFIXES, ImageError, VideoError, read_image
from detr_fast.models import DETR
from detr_fast.training.files import write_atomically
from detr_fast.training.ranks import check_device

if TYPE_CHECKING:
    from detr_fast.training.video import Frame

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})
_BATCH_FRAMES = 4


def predict_files(
    model: str | Path,
    images: Sequence[str | Path],
    output: Path,
    *,
    threshold: float = 0.5,
    attention: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> list[str]:
    """Detect objects in image and video files, and write drawings and predictions.json.

    The JSON file is a list with ``file``, ``drawing`` and ``detections`` of each image. A detection has ``label``,
    ``score``, ``box`` (x1, y1, x2, y2 in pixels), and ``category_id`` and ``name`` if the model has categories. A video
    has ``frames`` in place of ``detections``, each with its ``time`` in seconds and its ``detections``; its drawing is
    a video, of which a few frames at a time are held in memory.

    Args:
        model: As for :meth:`detr_fast.DETR.from_pretrained`, such as the output directory of a run.
        images: Image files, video files, and directories. Of a directory all images are taken, in subdirectories too,
            without hidden files and without those in ``output``.
        output: Directory for the drawings and the JSON file.
        threshold: Minimum score of the detections.
        attention: Whether to write a drawing of each detection, too, of what its query attends to in the last layer of
            the decoder, on average over the heads. Its name ends with ``-attention-`` and the index of the detection.
            Not for videos.
        device: ``"auto"`` uses a GPU if there is one.

    Returns:
        A message for each image or video that could not be read; they are skipped, but for the frames of a video before
        the fault.

    Raises:
        CheckpointError: The model cannot be loaded.
        ConfigError: There is no GPU, and ``device`` is ``"cuda"``.
        FileNotFoundError: A file or directory does not exist, or a directory contains no image.
        ModuleNotFoundError: There is a video, and the extra ``video`` is not installed.
    """
    check_device(device)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    detector = DETR.from_pretrained(model).to(device)
    output.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    failures: list[str] = []
    for number, path in enumerate(tqdm(list(_expand(images, output)), unit="image")):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            drawing = output / f"{number:05d}-{path.stem}.mp4"
            frames: list[dict[str, Any]] = []
            try:
                _predict_video(detector, path, drawing, threshold, frames)
            except VideoError as error:
                failures.append(str(error))
            if frames:
                records.append({"file": str(path), "drawing": drawing.name, "frames": frames})
            continue
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


def _predict_video(model: DETR, path: Path, drawing: Path, threshold: float, records: list[dict[str, Any]]) -> None:
    """Draw the detections in a video, and append the record of each frame.

    Raises:
        VideoError: A file cannot be read or written; the frames before are complete.
    """
    with explaining_missing("prediction for a video"):
        from detr_fast.training.video import VideoWriter, read_frames

    from detr_fast.drawing import draw_boxes  # imports matplotlib

    names = [category["name"] for category in model.categories or ()]
    frames = tqdm(read_frames(path), desc=path.name, unit="frame", leave=False)
    with VideoWriter(drawing) as writer:
        for batch in _batches(frames):
            for frame, found in zip(batch, model.predict([f.image for f in batch], threshold=threshold), strict=True):
                drawn = draw_boxes(frame.image, found["boxes"], found["labels"], names, found["scores"])
                writer.write(frame._replace(image=drawn))
                records.append({"time": frame.time, "detections": list(_detections(model, found))})


def _batches(frames: Iterable[Frame]) -> Iterator[list[Frame]]:
    """Yield batches of frames, also of those before an error."""
    batch: list[Frame] = []
    try:
        for frame in frames:
            batch.append(frame)
            if len(batch) == _BATCH_FRAMES:
                yield batch
                batch = []
    except VideoError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


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

"""Reading COCO detection annotation files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from detr_fast.data.faults import DataError, Fault, FaultKind
from detr_fast.data.rules import (
    Finding,
    Size,
    annotation_findings,
    category_findings,
    image_findings,
    is_int64,
    stated_size,
)
from detr_fast.images import ImageError

_SECTIONS = ("images", "annotations", "categories")
_FORMAT = 'COCO detection annotations are a JSON object with the lists "images", "annotations" and "categories"'


class Category(NamedTuple):
    """A class of objects: its id in the annotation file, and its name."""

    id: int
    name: str


class ImageEntry(NamedTuple):
    """A picture whose entry is sound and whose file exists."""

    id: int
    path: str
    size: Size | None  # (width, height) in pixels as the annotation file states them, None where it does not

    def size_fault(self, image: Image.Image) -> Fault | None:
        """The fault that the picture's size is not the one stated, or None."""
        if self.size is None or self.size == image.size:
            return None
        message = "the picture is {} x {}, the annotation file says {} x {}".format(*image.size, *self.size)
        return Fault(FaultKind.WRONG_IMAGE_SIZE, self.path, self.id, None, message)

    def unreadable(self, error: ImageError) -> Fault:
        """The fault that reading the picture raised ``error``."""
        cause = str(error).removeprefix(f"{self.path}: ")
        return Fault(FaultKind.UNREADABLE_IMAGE, self.path, self.id, None, cause)


@dataclass(frozen=True)
class Annotations:
    """What can be used of an annotation file, packed image after image, and the faults of the rest."""

    categories: tuple[Category, ...]  # label k stands for categories[k]
    images: list[ImageEntry]  # sorted by id
    labels: Tensor  # int64 [N]
    boxes: Tensor  # float32 [N,4], xyxy in pixels, not clipped
    offsets: list[int]  # images[i] owns rows offsets[i]:offsets[i+1]
    faults: list[Fault]


def read_annotations(
    annotation_file: str | Path, image_dir: str | Path, categories: Sequence[Category] | None = None
) -> Annotations:
    """Read a COCO detection annotation file and leave out what is faulty.

    Args:
        annotation_file: the JSON file.
        image_dir: the folder its file names are relative to.
        categories: the mapping of a trained model, label k standing for ``categories[k]``; annotations of other
            categories are left out and counted. None takes the file's own categories, sorted by id.

    Raises:
        DataError: the file cannot be read, is no COCO annotation file, or lists no image or no category;
            or ``image_dir`` is no folder.
    """
    file, folder = os.fspath(annotation_file), os.fspath(image_dir)
    content = _load(file)
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: there is no such folder; name the one that holds the images of {file}")
    faults: list[Fault] = []
    listed = _read_categories(content["categories"], file, faults)
    if categories is None:
        categories = sorted(listed)
        if not categories:
            raise DataError(f'{file}: "categories" lists no usable category, so that there is nothing to detect')
    else:
        faults += _renamed(listed, categories, file)
    images, sizes = _read_images(content["images"], folder, file, faults)
    labels = {category.id: label for label, category in enumerate(categories)}
    objects = _read_objects(content["annotations"], sizes, labels, file, faults)
    counts = [len(objects.get(image.id, ())) for image in images]
    rows = [row for image in images for row in objects.get(image.id, ())]
    return Annotations(
        categories=tuple(categories),
        images=images,
        labels=torch.tensor([label for label, _ in rows], dtype=torch.int64),
        boxes=torch.tensor([box for _, box in rows], dtype=torch.float32).reshape(-1, 4),
        offsets=[0, *torch.tensor(counts, dtype=torch.int64).cumsum(0).tolist()],
        faults=faults,
    )


def read_ground_truth(annotation_file: str | Path, image_dir: str | Path) -> dict[str, Any]:
    """What detections are scored against: a COCO data set without what is faulty.

    Crowds are kept, and so are images whose file is missing: what was not found in them counts as missed. The
    categories are the file's own. An ``area`` that is not stated is the box's.

    Raises:
        DataError: as :func:`read_annotations`.
    """
    file, folder = os.fspath(annotation_file), os.fspath(image_dir)
    content = _load(file)
    faults: list[Fault] = []
    categories = _read_categories(content["categories"], file, faults)
    _, sizes = _read_images(content["images"], folder, file, faults)
    known = {category.id for category in categories}
    annotations = [
        {
            "id": entry["id"],
            "image_id": entry["image_id"],
            "category_id": entry["category_id"],
            "bbox": entry["bbox"],
            "area": _area(entry),
            "iscrowd": entry.get("iscrowd", 0),
        }
        for entry in _usable_annotations(content["annotations"], sizes, known, file, faults)
    ]
    return {
        "images": [{"id": image} for image in sizes],
        "annotations": annotations,
        "categories": [category._asdict() for category in categories],
    }


def _area(entry: Mapping[str, Any]) -> float:
    area, (_, _, width, height) = entry.get("area"), entry["bbox"]
    if isinstance(area, int | float) and 0 <= area < math.inf:
        return float(area)
    return float(width * height)


def _load(file: str) -> Mapping[str, list[Any]]:
    try:
        content = json.loads(Path(file).read_bytes().strip() or b"null")
    except OSError as error:
        raise DataError(f"{file}: cannot read the annotation file: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not a JSON file ({error}); was it cut short? Write or download it anew") from error
    if content is None:
        raise DataError(f"{file}: the annotation file is empty; {_FORMAT}")
    if not isinstance(content, dict):
        raise DataError(f"{file}: holds a {type(content).__name__} instead of an object; {_FORMAT}")
    missing = [f'"{name}"' for name in _SECTIONS if not isinstance(content.get(name), list)]
    if missing:
        raise DataError(f"{file}: has no list {', '.join(missing)}; {_FORMAT}")
    if not content["images"]:
        raise DataError(f'{file}: "images" is empty: a data set needs at least one image')
    return content


def _read_categories(entries: list[Any], file: str, faults: list[Fault]) -> list[Category]:
    categories: dict[int, Category] = {}
    for entry in entries:
        findings = list(category_findings(entry, categories))
        faults += [Fault(kind, file, None, None, message) for kind, message in findings]
        if not findings:
            categories[entry["id"]] = Category(entry["id"], entry["name"])
    return list(categories.values())


def _renamed(listed: list[Category], imposed: Sequence[Category], file: str) -> list[Fault]:
    names = {category.id: category.name for category in imposed}
    return [
        Fault(FaultKind.RENAMED_CATEGORY, file, None, None, f"{category} was {names[category.id]!r} in training")
        for category in listed
        if names.get(category.id, category.name) != category.name
    ]


def _read_images(
    entries: list[Any], folder: str, file: str, faults: list[Fault]
) -> tuple[list[ImageEntry], dict[int, Size | None]]:
    """The images that can be used, and the stated size of all that have an id."""
    images: list[ImageEntry] = []
    sizes: dict[int, Size | None] = {}
    for entry in entries:
        findings = list(image_findings(entry, sizes, folder))
        identifier = _id_or_none(entry, "id")
        faults += [Fault(kind, file, identifier, None, message) for kind, message in findings]
        if identifier is None or identifier in sizes:
            continue
        sizes[identifier] = stated_size(entry)
        if _usable(findings):
            images.append(ImageEntry(identifier, os.path.join(folder, entry["file_name"]), sizes[identifier]))
    return sorted(images), sizes


def _read_objects(
    entries: list[Any], sizes: dict[int, Size | None], labels: dict[int, int], file: str, faults: list[Fault]
) -> dict[int, list[tuple[int, list[float]]]]:
    """Label and xyxy box of every usable object that is no crowd, by the id of its image."""
    objects: dict[int, list[tuple[int, list[float]]]] = {}
    for entry in _usable_annotations(entries, sizes, labels, file, faults):
        if not entry.get("iscrowd", 0):
            left, top, width, height = map(float, entry["bbox"])
            box = [left, top, left + width, top + height]
            objects.setdefault(entry["image_id"], []).append((labels[entry["category_id"]], box))
    return objects


def _usable_annotations(
    entries: list[Any], sizes: dict[int, Size | None], categories: Container[int], file: str, faults: list[Fault]
) -> Iterator[dict[str, Any]]:
    """The annotations that can be used, crowds included; what is wrong with them and the others goes to ``faults``."""
    seen: set[int] = set()
    for entry in entries:
        findings = list(annotation_findings(entry, seen, sizes, categories))
        identifier = _id_or_none(entry, "id")
        if findings:
            image = _id_or_none(entry, "image_id")
            faults += [Fault(kind, file, image, identifier, message) for kind, message in findings]
        if identifier is not None:
            seen.add(identifier)
        if _usable(findings):
            yield entry


def _usable(findings: list[Finding]) -> bool:
    return all(kind.keeps_entry for kind, _ in findings)


def _id_or_none(entry: Any, key: str) -> int | None:
    return entry[key] if isinstance(entry, dict) and is_int64(entry.get(key)) else None

"""Reading the annotations of a data set, without the faulty ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from detr_fast.data.faults import DataError, Fault, FaultKind
from detr_fast.data.formats import read_source
from detr_fast.data.guesses import faults_of_all
from detr_fast.data.rules import (
    Finding,
    Size,
    annotation_findings,
    category_findings,
    finite_corners,
    image_findings,
    is_area,
    is_int64,
    stated_size,
)
from detr_fast.data.source import Source, require_directory
from detr_fast.images import Decoded, ImageError, decode_image

Orientation: TypeAlias = Literal["upright", "stored"]


class Category(NamedTuple):
    """A category of objects.

    Attributes:
        id: Id of the category in the annotation file, or its number in a format that has none.
        name: Name of the category.
    """

    id: int
    name: str


class ImageEntry(NamedTuple):
    """An image whose entry in the annotation file is valid and whose file exists.

    Attributes:
        id: Id of the image in the annotation file, or its number in a format that has none.
        path: Path of the image file.
        size: (width, height) in pixels according to the annotation file; None if it does not state them.
    """

    id: int
    path: str
    size: Size | None

    def read(
        self, orientation: Orientation, fewest: Callable[[int, int], tuple[int, int]] | None = None
    ) -> tuple[Decoded, list[Fault]]:
        """Decode the image, turned so that its boxes fit, and return it with the faults of the file.

        The boxes of an image with an EXIF orientation are those of the upright image if its stated size is that of the
        upright image only, and those of the stored pixels if it is that of the stored pixels only.

        Args:
            orientation: What the boxes refer to where the stated size does not tell.
            fewest: As in :func:`~detr_fast.images.decode_image`.

        Raises:
            ImageError: The image cannot be read.
        """
        stored = decode_image(self.path, fewest)
        upright = stored.upright()
        faults = []
        fits = [self.size == stored.size, self.size == upright.size]
        is_upright = fits[1] if fits[0] != fits[1] else orientation == "upright"
        image = upright if is_upright else stored
        if stored.orientation != 1:
            told_by = "the stated size" if fits[0] != fits[1] else f"the setting orientation={orientation}"
            message = "the EXIF orientation is {}; the boxes are taken for the {} image of {} x {}, by {}".format(
                stored.orientation, "upright" if is_upright else "stored", *image.size, told_by
            )
            faults.append(Fault(FaultKind.TURNED_IMAGE, self.path, self.id, None, message))
        if stored.white not in (None, 2**16 - 1):
            message = f"the values are taken to range from 0 to {stored.white}, which holds the largest of them"
            faults.append(Fault(FaultKind.ASSUMED_RANGE, self.path, self.id, None, message))
        if self.size not in (None, image.size):
            message = "the image is {} x {}, the annotation file says {} x {}".format(*image.size, *self.size)
            faults.append(Fault(FaultKind.WRONG_IMAGE_SIZE, self.path, self.id, None, message))
        return image, faults

    def unreadable(self, error: ImageError) -> Fault:
        """Return the fault that stands for an ``error`` which was raised when the image was read."""
        cause = str(error).removeprefix(f"{self.path}: ")
        return Fault(FaultKind.UNREADABLE_IMAGE, self.path, self.id, None, cause)


@dataclass(frozen=True)
class Annotations:
    """The valid entries of a data set, packed in image order, and the faults of the other entries.

    Attributes:
        categories: The categories; label k stands for ``categories[k]``.
        images: The images, sorted by id.
        labels: Labels of the N objects of all images, int64 [N].
        boxes: Boxes of the objects, float32 [N,4], xyxy in pixels, not clipped.
        offsets: The objects of ``images[i]`` are the rows ``offsets[i]:offsets[i + 1]`` of labels and boxes.
        faults: The faults of the annotations.
        image_files: The file that annotates each image, by its id; empty if all are in the annotation file.
    """

    categories: tuple[Category, ...]
    images: list[ImageEntry]
    labels: Tensor
    boxes: Tensor
    offsets: list[int]
    faults: list[Fault]
    image_files: Mapping[int, str] = field(default_factory=dict)

    def many_objects(self, file: str, num_queries: int) -> list[Fault]:
        """Return a fault for each image with more objects than a model has queries.

        Args:
            file: The annotation file, which is named where no file annotates the image alone.
            num_queries: Number of queries of the model.
        """
        counts = [end - start for start, end in pairwise(self.offsets)]
        message = f"{{}} objects, but {num_queries} queries"
        return [
            Fault(FaultKind.MANY_OBJECTS, self.image_files.get(image.id, file), image.id, None, message.format(count))
            for image, count in zip(self.images, counts, strict=True)
            if count > num_queries
        ]


def read_annotations(
    annotation_file: str | Path, image_dir: str | Path, categories: Sequence[Category] | None = None
) -> Annotations:
    """Read the annotations of a data set and leave out faulty entries.

    Args:
        annotation_file: The annotations in one of the formats of :mod:`detr_fast.data.formats`, such as a COCO JSON
            file.
        image_dir: The directory of the images.
        categories: The categories of a trained model; label k stands for ``categories[k]``. Annotations of other
            categories are left out and counted. A format that has names only takes over their ids. None uses the
            categories of the annotations, sorted by id.

    Returns:
        The images, labels and boxes, and the faults that were found.

    Raises:
        DataError: The annotations cannot be read, are in no known format, or list no image or no category; or
            ``image_dir`` is not a directory.
    """
    file, folder = os.fspath(annotation_file), os.fspath(image_dir)
    source = read_source(file, folder, categories)
    require_directory(folder, file)
    faults = list(source.faults)
    listed = _read_categories(source.categories, file, faults)
    if categories is None:
        categories = sorted(listed)
        if not categories:
            raise DataError(f"{file}: there is no usable category, so that there is nothing to detect")
    else:
        faults += _renamed(listed, categories, file)
    images, sizes = _read_images(source, folder, file, faults)
    labels = {category.id: label for label, category in enumerate(categories)}
    objects = _read_objects(source, sizes, labels, file, faults)
    counts = [len(objects.get(image.id, ())) for image in images]
    rows = [row for image in images for row in objects.get(image.id, ())]
    faults += faults_of_all([box for _, box in rows], source.annotations, sizes, faults, file)
    return Annotations(
        categories=tuple(categories),
        images=images,
        labels=torch.tensor([label for label, _ in rows], dtype=torch.int64),
        boxes=torch.tensor([box for _, box in rows], dtype=torch.float32).reshape(-1, 4),
        offsets=[0, *torch.tensor(counts, dtype=torch.int64).cumsum(0).tolist()],
        faults=faults,
        image_files=source.image_files,
    )


def read_ground_truth(
    annotation_file: str | Path, image_dir: str | Path, categories: Sequence[Category] | None = None
) -> dict[str, Any]:
    """Read the ground truth for an evaluation: a COCO data set without faulty entries.

    Crowd regions are kept, and so are images whose file is missing, so that their objects count as missed. A missing
    or malformed ``area`` is replaced by the area of the box.

    Args:
        annotation_file: As for :func:`read_annotations`.
        image_dir: The directory of the images.
        categories: The categories of a trained model, whose ids a format that has names only takes over.

    Returns:
        A COCO data set with ``images``, ``annotations`` and ``categories``.

    Raises:
        DataError: As for :func:`read_annotations`.
    """
    file, folder = os.fspath(annotation_file), os.fspath(image_dir)
    source = read_source(file, folder, categories)
    faults: list[Fault] = []
    listed = _read_categories(source.categories, file, faults)
    _, sizes = _read_images(source, folder, file, faults)
    known = {category.id for category in listed}
    annotations = [
        {
            "id": entry["id"],
            "image_id": entry["image_id"],
            "category_id": entry["category_id"],
            "bbox": entry["bbox"],
            "area": _area(entry),
            "iscrowd": entry.get("iscrowd", 0),
        }
        for entry in _usable_annotations(source, sizes, known, file, faults)
    ]
    return {
        "images": [{"id": image} for image in sizes],
        "annotations": annotations,
        "categories": [category._asdict() for category in listed],
    }


def _area(entry: Mapping[str, Any]) -> float:
    area, (_, _, width, height) = entry.get("area"), entry["bbox"]
    return float(area) if is_area(area) else float(width) * float(height)


def _read_categories(entries: list[Any], file: str, faults: list[Fault]) -> list[Category]:
    categories: dict[int, Category] = {}
    by_name: dict[str, Category] = {}
    for entry in entries:
        findings = list(category_findings(entry, categories))
        faults += [Fault(kind, file, None, None, message) for kind, message in findings]
        if _usable(findings):
            category = Category(entry["id"], entry["name"])
            if (twin := by_name.setdefault(category.name, category)) is not category:
                message = f"categories {twin.id} and {category.id} are both called {category.name!r}"
                faults.append(Fault(FaultKind.DUPLICATE_NAME, file, None, None, message))
            categories[category.id] = category
    return list(categories.values())


def _renamed(listed: list[Category], imposed: Sequence[Category], file: str) -> list[Fault]:
    names = {category.id: category.name for category in imposed}
    return [
        Fault(FaultKind.RENAMED_CATEGORY, file, None, None, f"{category} was {names[category.id]!r} in training")
        for category in listed
        if names.get(category.id, category.name) != category.name
    ]


def _read_images(
    source: Source, folder: str, file: str, faults: list[Fault]
) -> tuple[list[ImageEntry], dict[int, Size | None]]:
    """Return the usable images, and the stated size of each entry with an id."""
    images: list[ImageEntry] = []
    sizes: dict[int, Size | None] = {}
    by_path: dict[str, int] = {}
    for entry in source.images:
        findings = list(image_findings(entry, sizes, folder))
        identifier = _id_or_none(entry, "id")
        place = file if identifier is None else source.image_files.get(identifier, file)
        faults += [Fault(kind, place, identifier, None, message) for kind, message in findings]
        if identifier is None or identifier in sizes:
            continue
        sizes[identifier] = stated_size(entry)
        if _usable(findings):
            path = os.path.join(folder, entry["file_name"])
            if (twin := by_path.setdefault(os.path.normpath(path), identifier)) != identifier:
                message = f"{entry['file_name']!r} is the file of image {twin}, too"
                faults.append(Fault(FaultKind.DUPLICATE_FILE, place, identifier, None, message))
            images.append(ImageEntry(identifier, path, sizes[identifier]))
    return sorted(images), sizes


def _read_objects(
    source: Source, sizes: dict[int, Size | None], labels: dict[int, int], file: str, faults: list[Fault]
) -> dict[int, list[tuple[int, list[float]]]]:
    """Return label and xyxy box of each usable object that is not a crowd region, by image id."""
    objects: dict[int, list[tuple[int, list[float]]]] = {}
    for entry in _usable_annotations(source, sizes, labels, file, faults):
        if not entry.get("iscrowd", 0):
            left, top, width, height = map(float, entry["bbox"])
            box = [left, top, left + width, top + height]
            objects.setdefault(entry["image_id"], []).append((labels[entry["category_id"]], box))
    return objects


def _usable_annotations(
    source: Source, sizes: dict[int, Size | None], categories: Container[int], file: str, faults: list[Fault]
) -> Iterator[dict[str, Any]]:
    """Yield the usable annotations, crowd regions included, and append the faults of all annotations to ``faults``."""
    seen: set[int] = set()
    for entry in source.annotations:
        findings = list(annotation_findings(entry, seen, sizes, categories))
        identifier = _id_or_none(entry, "id")
        if findings:
            image = _id_or_none(entry, "image_id")
            place, line = (file, None) if identifier is None else source.places.get(identifier, (file, None))
            box = finite_corners(entry)
            faults += [Fault(kind, place, image, identifier, message, line, box) for kind, message in findings]
        if identifier is not None:
            seen.add(identifier)
        if _usable(findings):
            yield entry


def _usable(findings: list[Finding]) -> bool:
    return all(kind.keeps_entry for kind, _ in findings)


def _id_or_none(entry: Any, key: str) -> int | None:
    return entry[key] if isinstance(entry, dict) and is_int64(entry.get(key)) else None

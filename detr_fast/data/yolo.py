"""Reading YOLO data sets: a text file for each image, with a line for each object."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from detr_fast.data.faults import DataError, Fault, FaultKind
from detr_fast.data.rules import finite_corners
from detr_fast.data.source import FileError, Place, Source, category_ids, read_text, require_directory
from detr_fast.images import SUFFIXES, ImageError, upright_size

if TYPE_CHECKING:
    from detr_fast.data.annotations import Category

CLASSES_FILE = "classes.txt"

_LINE = "a line is: class cx cy width height, or: class x1 y1 x2 y2 x3 y3 ... of a polygon, all but the class in [0,1]"
_FORMAT = "the YAML file of a YOLO data set has names, a list or a mapping from the number of each class to its name"


def read_yolo(file: str, folder: str, imposed: Sequence[Category] | None) -> Source:
    """Read the entries of a YOLO data set.

    With a YAML file, the label file of an image is where the last directory ``images`` of its path is replaced by
    ``labels``, or beside the image if its path has no such directory. Label files may also lie in the directory of a
    ``classes.txt``, as LabelImg writes them. An image without a label file has no objects. The fractions refer to
    the upright image, as Ultralytics takes them. A polygon stands for its bounding box. With ``kpt_shape`` in the YAML
    file, the key points that follow each box are left out.

    Args:
        file: The YAML file with ``names``, or a file ``classes.txt`` with a name on each line.
        folder: The directory of the images of one split, whose subdirectories are searched too.
        imposed: The categories of a trained model, whose ids are those of the same names; None numbers the classes as
            the label files do.

    Raises:
        DataError: The names cannot be used, or there are no images or no label files.
    """
    if os.path.basename(file) == CLASSES_FILE:
        names, num_keypoint_values = _listed_names(file), 0
    else:
        content = _load_yaml(file)
        names, num_keypoint_values = _names(content, file), _num_keypoint_values(content, file)
    require_directory(folder, file)
    images = sorted(_find_images(folder))
    if not images:
        raise DataError(f"{folder}: contains no image ({', '.join(sorted(SUFFIXES))})")
    if os.path.basename(file) == CLASSES_FILE:
        labels = {name: os.path.join(os.path.dirname(file), _as_label(name)) for name in images}
    else:
        labels = {name: label_file(os.path.join(folder, name)) for name in images}
    if not any(map(os.path.isfile, labels.values())):
        raise DataError(
            f"{folder}: none of its {len(images)} images has a label file; that of {images[0]} should be "
            f"{labels[images[0]]}"
        )
    numbers = sorted(names)
    ids = {number: number for number in numbers}
    if imposed is not None:
        texts = [names[number] or "" for number in numbers]
        ids = dict(zip(numbers, category_ids(texts, imposed, 0), strict=True))
    source = Source(categories=[{"id": ids[number], "name": names[number]} for number in numbers])
    for identifier, name in enumerate(images, 1):
        path = os.path.join(folder, name)
        try:
            size = upright_size(path)
        except ImageError as error:
            cause = str(error).removeprefix(f"{path}: ")
            source.faults.append(Fault(FaultKind.UNREADABLE_IMAGE, path, identifier, None, cause))
            continue
        source.images.append({"id": identifier, "file_name": name, "width": size[0], "height": size[1]})
        source.image_files[identifier] = labels[name]
        if os.path.isfile(labels[name]):
            _read_labels(source, labels[name], identifier, size, ids, num_keypoint_values)
    source.faults += _labels_without_image(set(labels.values()))
    return source


def label_file(image: str) -> str:
    """Return the path of the label file of an image."""
    directory, name = os.path.split(os.path.normpath(image))
    if "images" not in directory.split(os.sep):
        directory = os.path.abspath(directory)
    parts = directory.split(os.sep)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        directory = os.sep.join(parts)
    return _as_label(os.path.join(directory, name))


def _as_label(image: str) -> str:
    return os.path.splitext(image)[0] + ".txt"


def _read_labels(
    source: Source, file: str, image: int, size: tuple[int, int], ids: dict[int, int], num_keypoint_values: int
) -> None:
    """Append the annotations of a label file, and the faults of its other lines."""
    try:
        lines = read_text(file).splitlines()
    except FileError as error:
        source.faults.append(Fault(FaultKind.MALFORMED_FILE, file, image, None, str(error)))
        return
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            label, *values = map(float, words)
            left, top, right, bottom = _corners(values, num_keypoint_values)
            if not label.is_integer():
                raise ValueError(f"the class must be an integer, got {words[0]}")
        except (ValueError, OverflowError) as error:
            kind = FaultKind.MALFORMED_ANNOTATION
            source.faults.append(Fault(kind, file, image, None, f"{error}; {_LINE}", number))
            continue
        width, height = size
        left, top, right, bottom = left * width, top * height, right * width, bottom * height
        bbox = [left, top, right - left, bottom - top]
        if int(label) not in ids:
            message = f"there is no class {int(label)}; the classes are {min(ids)} to {max(ids)}"
            box = finite_corners({"bbox": bbox})
            source.faults.append(Fault(FaultKind.UNKNOWN_CATEGORY, file, image, None, message, number, box))
            continue
        source.add_annotation(
            Place(file, number),
            image_id=image,
            category_id=ids[int(label)],
            bbox=bbox,
        )


def _corners(values: list[float], num_keypoint_values: int) -> tuple[float, float, float, float]:
    """Return the (x1, y1, x2, y2) of a box or a polygon, as fractions; ValueError if it is neither."""
    if len(values) == 4 + num_keypoint_values:
        x, y, width, height = values[:4]
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    if len(values) < 6 or len(values) % 2 or num_keypoint_values:
        expected = f"{5 + num_keypoint_values} numbers" + ("" if num_keypoint_values else ", or 7, 9, 11, ...")
        raise ValueError(f"expected {expected}, got {len(values) + 1}")
    if not all(map(math.isfinite, values)):
        return (math.nan,) * 4
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])


def _labels_without_image(labels: set[str]) -> Iterator[Fault]:
    """Yield a fault for each file that has labels, but no image, in the directories of the label files."""
    for directory in sorted({os.path.dirname(file) for file in labels}):
        if not os.path.isdir(directory):
            continue
        for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
            is_label = entry.name.endswith(".txt") and entry.is_file() and entry.name != CLASSES_FILE
            if is_label and entry.path not in labels and not entry.name.startswith("."):
                yield Fault(FaultKind.MISSING_IMAGE, entry.path, None, None, "there is no image for these labels")


def _find_images(folder: str) -> Iterator[str]:
    """Yield the paths of the images relative to their directory; hidden files are left out."""
    for directory, subdirectories, names in os.walk(folder):
        subdirectories[:] = [name for name in subdirectories if not name.startswith(".")]
        for name in names:
            if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith("."):
                yield os.path.relpath(os.path.join(directory, name), folder)


def _listed_names(file: str) -> dict[int, str | None]:
    try:
        names: dict[int, str | None] = dict(enumerate(map(str.strip, read_text(file).strip().splitlines())))
    except FileError as error:
        raise DataError(f"{file}: {error}; it should have the name of a class on each line") from error
    if not names:
        raise DataError(f"{file}: is empty; it should have the name of a class on each line")
    return names


def _load_yaml(file: str) -> dict[Any, Any]:
    try:
        content = yaml.safe_load(read_text(file))
    except (FileError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: {error}; {_FORMAT}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: contains a {type(content).__name__} instead of a mapping; {_FORMAT}")
    return content


def _names(content: dict[Any, Any], file: str) -> dict[int, str | None]:
    """Return the name of each class by its number; None where it is no text."""
    names = content.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise DataError(f"{file}: has no names; {_FORMAT}")
    try:
        numbered = {int(number): _text(name) for number, name in names.items()}
    except (OverflowError, TypeError, ValueError) as error:
        raise DataError(f"{file}: the keys of names must be integers ({error}); {_FORMAT}") from error
    stated = content.get("nc", len(numbered))
    if type(stated) is not int:
        raise DataError(f"{file}: nc must be the number of names, got a {type(stated).__name__}")
    if stated != len(numbered):
        raise DataError(f"{file}: nc is {stated}, but there are {len(numbered)} names; correct either of them")
    return numbered


def _text(name: Any) -> str | None:
    """Return a name; where YAML takes it for a number, as text."""
    return str(name) if isinstance(name, (str, int, float)) and not isinstance(name, bool) else None


def _num_keypoint_values(content: dict[Any, Any], file: str) -> int:
    """Return how many numbers follow each box."""
    shape = content.get("kpt_shape", [0, 2])
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and 0 <= n < 1000 for n in shape)):
        raise DataError(f"{file}: kpt_shape must be [number of key points, 2 or 3]")
    return shape[0] * shape[1]

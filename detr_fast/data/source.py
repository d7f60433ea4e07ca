"""What the readers of all formats yield: the entries of a data set in the form of COCO detection JSON."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from detr_fast.data.faults import DataError, Fault

if TYPE_CHECKING:
    from detr_fast.data.annotations import Category

MAX_FILE_SIZE = 2**22  # bytes of a file that annotates a single image, or lists names


class Place(NamedTuple):
    """Where an annotation is written.

    Attributes:
        file: The file.
        line: Number of the line, from 1.
    """

    file: str
    line: int


@dataclass
class Source:
    """The entries of a data set in the form of COCO detection JSON, whatever the format of its files.

    The entries are not validated; :mod:`detr_fast.data.rules` applies to those of all formats.

    Attributes:
        images: Entries with ``id``, ``file_name``, ``width`` and ``height``.
        annotations: Entries with ``id``, ``image_id``, ``category_id``, ``bbox``, and perhaps ``iscrowd`` and ``area``.
        categories: Entries with ``id`` and ``name``.
        faults: The faults of what has no entry, such as a line that cannot be parsed.
        places: Where each annotation is written, by its id; empty if all are in the annotation file.
        image_files: The file that annotates each image, by its id; empty if all are in the annotation file.
    """

    images: list[Any] = field(default_factory=list)
    annotations: list[Any] = field(default_factory=list)
    categories: list[Any] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    places: dict[int, Place] = field(default_factory=dict)
    image_files: dict[int, str] = field(default_factory=dict)

    def add_annotation(self, place: Place, **entry: Any) -> None:
        """Append an annotation that is written at a place, with the next id from 1."""
        identifier = len(self.annotations) + 1
        self.annotations.append({"id": identifier, **entry})
        self.places[identifier] = place


class FileError(ValueError):
    """A file of annotations cannot be read; the message gives the cause."""


def read_text(file: str) -> str:
    """Read a UTF-8 file of at most :data:`MAX_FILE_SIZE` bytes.

    Raises:
        FileError: The file cannot be read, is too large, or is not UTF-8.
    """
    try:
        if (size := os.stat(file).st_size) > MAX_FILE_SIZE:
            raise FileError(f"the file has {size} bytes; at most {MAX_FILE_SIZE} are read")
        return Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(f"the file is not UTF-8 text ({error})") from error
    except OSError as error:
        raise FileError(f"cannot read the file: {error.strerror}") from error


def require_directory(folder: str, file: str) -> None:
    """Raise DataError if the directory of the images that ``file`` annotates does not exist."""
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: there is no such directory; it should contain the images of {file}")


def category_ids(names: Sequence[str], imposed: Sequence[Category] | None, start: int) -> list[int]:
    """Return ids for categories of a format that has names only.

    Args:
        names: The names of the categories.
        imposed: The categories of a trained model, whose ids are those of the same names; other names get ids beyond.
            None numbers the names.
        start: The first number without imposed categories.
    """
    if imposed is None:
        return list(range(start, start + len(names)))
    known: dict[str, Iterator[int]] = {
        name: iter([category.id for category in imposed if category.name == name]) for name in names
    }
    others = count(max((category.id for category in imposed), default=-1) + 1)
    return [identifier if (identifier := next(known[name], None)) is not None else next(others) for name in names]

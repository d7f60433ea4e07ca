"""The faults of a data set and their treatment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple

from detr_fast.text import escape


class DataError(ValueError):
    """A data set cannot be used at all; the message gives the file, the cause and the remedy."""


class FaultKind(StrEnum):
    """The kinds of fault; the value is printed in reports."""

    NON_INTEGER_ID = "id that is no integer"
    NON_PORTABLE_ID = "id that other tools misread"
    MALFORMED_FILE = "malformed annotation file"
    MALFORMED_CATEGORY = "malformed category"
    DUPLICATE_CATEGORY = "duplicate category id"
    DUPLICATE_NAME = "duplicate category name"
    RENAMED_CATEGORY = "renamed category"
    MALFORMED_IMAGE = "malformed image entry"
    DUPLICATE_IMAGE = "duplicate image id"
    DUPLICATE_FILE = "image file with two ids"
    FOREIGN_FILE_NAME = "file names of another directory or system"
    UNSAFE_FILE_NAME = "unsafe file name"
    MISSING_IMAGE = "missing image"
    UNREADABLE_IMAGE = "unreadable image"
    WRONG_IMAGE_SIZE = "wrong image size"
    TURNED_IMAGE = "image with an EXIF orientation"
    ASSUMED_RANGE = "image with an assumed range of values"
    MALFORMED_ANNOTATION = "malformed annotation"
    DUPLICATE_ANNOTATION = "duplicate annotation id"
    UNKNOWN_IMAGE = "unknown image"
    UNKNOWN_CATEGORY = "unknown category"
    MALFORMED_AREA = "malformed area"
    MALFORMED_BOX = "malformed box"
    NON_FINITE_BOX = "non-finite box"
    BOX_WITHOUT_AREA = "box without area"
    BOX_OUTSIDE_IMAGE = "box outside the image"
    BOX_BEYOND_IMAGE = "box beyond the image's edge"
    BOXES_AS_FRACTIONS = "boxes as fractions"
    BOXES_AS_CORNERS = "boxes as corners"
    NO_ANNOTATION = "no usable annotation"
    MANY_OBJECTS = "more objects than queries"

    @property
    def treatment(self) -> str:
        """How a data set treats an entry with this fault."""
        return _TREATMENTS.get(self, "left out")

    @property
    def keeps_entry(self) -> bool:
        """Whether an entry with this fault is used nevertheless."""
        return self in _TREATMENTS


_TREATMENTS = {
    FaultKind.NON_INTEGER_ID: "taken for integers",
    FaultKind.NON_PORTABLE_ID: "used as it is",
    FaultKind.DUPLICATE_NAME: "kept as a class of its own",
    FaultKind.DUPLICATE_FILE: "used for each id",
    FaultKind.FOREIGN_FILE_NAME: "taken as relative to the image directory",
    FaultKind.MALFORMED_AREA: "the area of the box is used",
    FaultKind.RENAMED_CATEGORY: "treated as the same",
    FaultKind.UNREADABLE_IMAGE: "replaced in training, skipped in evaluation",
    FaultKind.WRONG_IMAGE_SIZE: "the size of the file is used",
    FaultKind.TURNED_IMAGE: "turned as its boxes are",
    FaultKind.ASSUMED_RANGE: "scaled",
    FaultKind.BOX_BEYOND_IMAGE: "clipped",
    FaultKind.BOXES_AS_FRACTIONS: "taken as pixels nevertheless",
    FaultKind.BOXES_AS_CORNERS: "taken as [x, y, width, height] nevertheless",
    FaultKind.NO_ANNOTATION: "refused in training",
    FaultKind.MANY_OBJECTS: "at most one object for each query is learned and found",
}


class Fault(NamedTuple):
    """A fault of a data set.

    Attributes:
        kind: Kind of the fault.
        file: The image file if its content is faulty, else the annotation file, or the file that annotates the image.
        image_id: Id of the image; None if the fault concerns no image, or the id itself is faulty.
        annotation_id: Id of the annotation; None if the fault concerns no annotation, or the id itself is faulty.
        message: Description of the fault.
        line: Number of the line of the file, from 1; None if the format has no lines, or the fault concerns no line.
        box: The faulty box (x1, y1, x2, y2) in pixels; None if the fault concerns no box, or it has no finite numbers.
    """

    kind: FaultKind
    file: str
    image_id: int | None
    annotation_id: int | None
    message: str
    line: int | None = None
    box: tuple[float, float, float, float] | None = None

    def __str__(self) -> str:
        location = [self.file]
        if self.line is not None:
            location.append(f"line {self.line}")
        else:  # ids number the entries of a format that has none, and a line says more
            if self.image_id is not None:
                location.append(f"image {self.image_id}")
            if self.annotation_id is not None:
                location.append(f"annotation {self.annotation_id}")
        return escape(f"{', '.join(location)}: {self.kind}: {self.message}")


def count_faults(faults: Iterable[Fault]) -> dict[FaultKind, int]:
    """Count the faults of each kind that occurs, in the order of :class:`FaultKind`."""
    counts = dict.fromkeys(FaultKind, 0)
    for fault in faults:
        counts[fault.kind] += 1
    return {kind: count for kind, count in counts.items() if count}


def describe_counts(counts: Mapping[FaultKind, int]) -> str:
    """Format the counts in one line, each with the treatment of its faults."""
    return ", ".join(f"{count} x {kind} ({kind.treatment})" for kind, count in counts.items())

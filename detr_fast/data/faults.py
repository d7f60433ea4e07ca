"""What can be wrong with a data set, and what training does about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple


class DataError(ValueError):
    """A data set cannot be used at all; the message names the file, the cause and the way out."""


class FaultKind(StrEnum):
    """The kinds of fault; the value is what a report prints."""

    MALFORMED_CATEGORY = "malformed category"
    DUPLICATE_CATEGORY = "duplicate category id"
    RENAMED_CATEGORY = "renamed category"
    MALFORMED_IMAGE = "malformed image entry"
    DUPLICATE_IMAGE = "duplicate image id"
    UNSAFE_FILE_NAME = "unsafe file name"
    MISSING_IMAGE = "missing image"
    UNREADABLE_IMAGE = "unreadable image"
    WRONG_IMAGE_SIZE = "wrong image size"
    MALFORMED_ANNOTATION = "malformed annotation"
    DUPLICATE_ANNOTATION = "duplicate annotation id"
    UNKNOWN_IMAGE = "unknown image"
    UNKNOWN_CATEGORY = "unknown category"
    MALFORMED_BOX = "malformed box"
    NON_FINITE_BOX = "non-finite box"
    BOX_WITHOUT_AREA = "box without area"
    BOX_OUTSIDE_IMAGE = "box outside the image"
    BOX_BEYOND_IMAGE = "box beyond the image's edge"

    @property
    def treatment(self) -> str:
        """What a data set does with an entry that has this fault."""
        return _TREATMENTS.get(self, "left out")

    @property
    def keeps_entry(self) -> bool:
        """Whether an entry that has this fault is used all the same."""
        return self in _TREATMENTS


_TREATMENTS = {
    FaultKind.RENAMED_CATEGORY: "taken for the same",
    FaultKind.UNREADABLE_IMAGE: "replaced in training, skipped in evaluation",
    FaultKind.WRONG_IMAGE_SIZE: "the picture's own size taken",
    FaultKind.BOX_BEYOND_IMAGE: "clipped",
}


class Fault(NamedTuple):
    """One fault, where it is, and what is wrong there."""

    kind: FaultKind
    file: str  # the picture where its content is at fault, else the annotation file
    image_id: int | None  # None where the fault concerns no image, or the id itself is at fault
    annotation_id: int | None
    message: str

    def __str__(self) -> str:
        place = [self.file]
        if self.image_id is not None:
            place.append(f"image {self.image_id}")
        if self.annotation_id is not None:
            place.append(f"annotation {self.annotation_id}")
        return f"{', '.join(place)}: {self.kind}: {self.message}"


def count_faults(faults: Iterable[Fault]) -> dict[FaultKind, int]:
    """How many faults there are of each kind that occurs, in the order of :class:`FaultKind`."""
    counts = dict.fromkeys(FaultKind, 0)
    for fault in faults:
        counts[fault.kind] += 1
    return {kind: count for kind, count in counts.items() if count}


def describe_counts(counts: Mapping[FaultKind, int]) -> str:
    """The counts in one line, each with what training does about it."""
    return ", ".join(f"{count} x {kind} ({kind.treatment})" for kind, count in counts.items())

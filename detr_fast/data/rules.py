"""Validation of the entries of a data set, which have the form of COCO's JSON in all formats.

Both the data set, which leaves faulty entries out, and ``check_dataset``, which reports them, call these functions. An
entry is any JSON value. Each function yields the faults of an entry as pairs of kind and message.
"""

from __future__ import annotations

import os
import reprlib
import sys
from collections.abc import Container, Iterator, Mapping
from pathlib import PureWindowsPath
from typing import Any, TypeAlias, TypeGuard

from detr_fast.data.faults import FaultKind

Finding: TypeAlias = tuple[FaultKind, str]
Size: TypeAlias = tuple[int, int]  # (width, height) in pixels

MAX_EXACT_ID = 2**53  # larger integers are not exact in float64
EDGE_TOLERANCE = 0.5  # pixels: boxes exceed the image by a fraction of a pixel where annotation tools round


def category_findings(entry: Any, seen: Container[int]) -> Iterator[Finding]:
    """Yield the faults of an entry of "categories"; ``seen`` contains the ids of the entries before it."""
    if not isinstance(entry, dict):
        yield FaultKind.MALFORMED_CATEGORY, f"expected an object, got {_brief(entry)}"
        return
    identifier, name = entry.get("id"), entry.get("name")
    if not is_int64(identifier):
        yield FaultKind.MALFORMED_CATEGORY, f'"id" must be an integer, got {_brief(identifier)}'
    elif identifier in seen:
        yield FaultKind.DUPLICATE_CATEGORY, f"category {identifier} ({_brief(name)}) is already listed"
    else:
        yield from _id_findings(identifier)
    if not isinstance(name, str) or not name:
        yield FaultKind.MALFORMED_CATEGORY, f'"name" must be a string, got {_brief(name)} (id {_brief(identifier)})'


def image_findings(entry: Any, seen: Container[int], image_dir: str) -> Iterator[Finding]:
    """Yield the faults of an entry of "images" without opening the file; ``seen`` contains the ids before it."""
    if not isinstance(entry, dict):
        yield FaultKind.MALFORMED_IMAGE, f"expected an object, got {_brief(entry)}"
        return
    identifier, name = entry.get("id"), entry.get("file_name")
    if not is_int64(identifier):
        yield (
            FaultKind.MALFORMED_IMAGE,
            f'"id" must be an integer, got {_brief(identifier)} ({_brief(name)}); number the images',
        )
    elif identifier in seen:
        yield FaultKind.DUPLICATE_IMAGE, f"{_brief(name)} has the id of an earlier image"
    else:
        yield from _id_findings(identifier)
    if not isinstance(name, str) or not name:
        yield FaultKind.MALFORMED_IMAGE, f'"file_name" must be a string, got {_brief(name)}'
    elif leaves_folder(name):
        yield FaultKind.UNSAFE_FILE_NAME, f"{_brief(name)} must be a path inside the image directory, relative to it"
    elif not os.path.isfile(os.path.join(image_dir, name)):
        yield FaultKind.MISSING_IMAGE, f"there is no file {_brief(name)} in {image_dir}"
    if stated_size(entry) is None:
        size = f"{_brief(entry.get('width'))} x {_brief(entry.get('height'))}"
        yield FaultKind.WRONG_IMAGE_SIZE, f'"width" and "height" must be integers above 0, got {size}'


def annotation_findings(
    entry: Any, seen: Container[int], sizes: Mapping[int, Size | None], categories: Container[int]
) -> Iterator[Finding]:
    """Yield the faults of an entry of "annotations".

    Args:
        entry: The annotation.
        seen: Ids of the annotations before it.
        sizes: (width, height) of each listed image by its id; None where the file does not state it.
        categories: Ids of the known categories.
    """
    if not isinstance(entry, dict):
        yield FaultKind.MALFORMED_ANNOTATION, f"expected an object, got {_brief(entry)}"
        return
    identifier, image, category = entry.get("id"), entry.get("image_id"), entry.get("category_id")
    size = None
    if not is_int64(identifier):
        yield FaultKind.MALFORMED_ANNOTATION, f'"id" must be an integer, got {_brief(identifier)}; number from 1'
    elif identifier in seen:
        yield FaultKind.DUPLICATE_ANNOTATION, "an earlier annotation has this id"
    elif identifier <= 0:
        yield FaultKind.NON_PORTABLE_ID, f'COCO tools take the annotation id {identifier} for "no match"; count from 1'
    else:
        yield from _id_findings(identifier)
    if not is_int64(image):
        yield FaultKind.MALFORMED_ANNOTATION, f'"image_id" must be an integer, got {_brief(image)}'
    elif image not in sizes:
        yield FaultKind.UNKNOWN_IMAGE, f'"images" does not list image {image}'
    else:
        size = sizes[image]
    if not is_int64(category):
        yield FaultKind.MALFORMED_ANNOTATION, f'"category_id" must be an integer, got {_brief(category)}'
    elif category not in categories:
        yield FaultKind.UNKNOWN_CATEGORY, f"there is no category {category}"
    if entry.get("iscrowd", 0) not in (0, 1):
        yield FaultKind.MALFORMED_ANNOTATION, f'"iscrowd" must be 0 or 1, got {_brief(entry["iscrowd"])}'
    area = entry.get("area")
    if area is not None and not is_area(area):
        yield FaultKind.MALFORMED_AREA, f'"area" must be a finite number of at least 0, got {_brief(area)}'
    yield from _box_findings(entry.get("bbox"), size)


def stated_size(entry: Mapping[str, Any]) -> Size | None:
    """Return the (width, height) that an image entry states, or None if they are missing or invalid."""
    width, height = entry.get("width"), entry.get("height")
    return (width, height) if is_int64(width) and is_int64(height) and min(width, height) > 0 else None


def is_int64(value: Any) -> TypeGuard[int]:
    """Return whether ``value`` is an integer of at most 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def is_area(value: Any) -> TypeGuard[int | float]:
    """Return whether ``value`` is a number of at least 0 that float64 represents."""
    return _is_number(value) and 0 <= value <= sys.float_info.max


def finite_corners(entry: Any) -> tuple[float, float, float, float] | None:
    """Return the (x1, y1, x2, y2) of the box of an annotation; None if it has no four finite numbers."""
    box = entry.get("bbox") if isinstance(entry, dict) else None
    if not _is_box(box) or not _is_finite(box):
        return None
    left, top, width, height = map(float, box)
    return left, top, left + width, top + height


def leaves_folder(name: str) -> bool:
    """Return whether a file name may lead out of the directory that it is relative to."""
    path = PureWindowsPath(name)  # accepts both kinds of slash
    return bool(path.drive or path.root) or ".." in path.parts


def _id_findings(identifier: int) -> Iterator[Finding]:
    if abs(identifier) > MAX_EXACT_ID:
        yield FaultKind.NON_PORTABLE_ID, f'"id" {identifier} is beyond 2^53, where COCO tools round ids to float64'


def _box_findings(box: Any, size: Size | None) -> Iterator[Finding]:
    if not _is_box(box):
        yield FaultKind.MALFORMED_BOX, f'"bbox" must be four numbers [x, y, width, height], got {_brief(box)}'
        return
    if not _is_finite(box):
        yield FaultKind.NON_FINITE_BOX, f"bbox {_brief(box)}"
        return
    left, top, width, height = box
    if width <= 0 or height <= 0:
        yield FaultKind.BOX_WITHOUT_AREA, f"bbox {_numbers(box)} [x, y, width, height]"
        return
    if size is None:
        return
    right, bottom = left + width, top + height
    description = f"bbox {_numbers(box)} [x, y, width, height] in an image of {size[0]} x {size[1]}"
    if left >= size[0] or top >= size[1] or right <= 0 or bottom <= 0:
        yield FaultKind.BOX_OUTSIDE_IMAGE, description
    elif max(-left, -top, right - size[0], bottom - size[1]) > EDGE_TOLERANCE:
        yield FaultKind.BOX_BEYOND_IMAGE, description


def _is_box(box: Any) -> TypeGuard[list[int | float]]:
    return isinstance(box, list) and len(box) == 4 and all(_is_number(value) for value in box)


def _is_finite(box: list[int | float]) -> bool:
    return all(abs(value) <= sys.float_info.max for value in box)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _numbers(box: list[int | float]) -> str:
    return f"[{', '.join(f'{value:.10g}' for value in box)}]"


def _brief(value: Any) -> str:
    return reprlib.repr(value)

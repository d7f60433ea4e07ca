"""Repairs of a COCO file as some tools write it, where there is no doubt about what is meant."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import PureWindowsPath
from typing import Any

from detr_fast.data.faults import Fault, FaultKind
from detr_fast.data.rules import MAX_EXACT_ID, leaves_folder
from detr_fast.data.source import Source

_MAX_DIGITS = 19  # of a 64-bit integer
_TRIED = 100  # file names, in case the first images are missing; each takes some look-ups, on slow disks too


def repair(source: Source, file: str, folder: str) -> None:
    """Repair the entries of an annotation file in place, and add a fault for each kind of repair.

    Ids that are text or floating point, such as "7" and 7.0, become integers. File names with backslashes, or with a
    directory that is that of the images somewhere else, become relative to the directory of the images.

    Args:
        source: The entries of the file.
        file: The annotation file, which the faults name.
        folder: The directory of the images.
    """
    sections = {"images": source.images, "annotations": source.annotations, "categories": source.categories}
    for name, entries in sections.items():
        source.faults += _repair_ids(entries, name, file)
    source.faults += _repair_file_names(source.images, file, folder)


def _repair_ids(entries: list[Any], section: str, file: str) -> Iterator[Fault]:
    first, count = None, 0
    for entry in filter(lambda entry: isinstance(entry, dict), entries):
        for key in ("id", "image_id", "category_id"):
            value = entry.get(key)
            if isinstance(value, str | float) and (identifier := _as_id(value)) is not None:
                entry[key] = identifier
                first, count = (value, 1) if first is None else (first, count + 1)
    if count:
        message = f'{count} ids in "{section}" are text or floating point, the first is {first!r}'
        yield Fault(FaultKind.NON_INTEGER_ID, file, None, None, message)


def _as_id(value: str | float) -> int | None:
    """Return the integer that a text or a number stands for; None if there is any doubt."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) <= MAX_EXACT_ID else None
    if len(value) > _MAX_DIGITS or not (value.isascii() and value.isdecimal()):
        return None
    return int(value) if str(int(value)) == value else None  # "07" may be another id than "7"


def _repair_file_names(entries: list[Any], file: str, folder: str) -> Iterator[Fault]:
    """Remove what precedes all file names, if the file has none of its images under its own names."""
    named = [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("file_name"), str)]
    if not named or _any_exists((entry["file_name"] for entry in named), folder):
        return
    names = [PureWindowsPath(entry["file_name"]).as_posix() for entry in named]  # accepts both kinds of slash
    found = (_foreign_prefix(name, folder) for name in names[:_TRIED])
    prefix = next((prefix for prefix in found if prefix is not None), None)
    if prefix is None or not all(name.startswith(prefix) for name in names):
        return
    for entry, name in zip(named, names, strict=True):
        entry["file_name"] = name.removeprefix(prefix)
    removed = f"after {prefix!r}" if prefix else "with slashes in place of backslashes"
    message = f"{len(names)} file names are taken {removed}; the first is {named[0]['file_name']!r}"
    yield Fault(FaultKind.FOREIGN_FILE_NAME, file, None, None, message)


def _foreign_prefix(name: str, folder: str) -> str | None:
    """Return the shortest beginning of a name without which it is that of a file in the directory; None if none is."""
    parts = name.split("/")
    for index in range(len(parts)):
        rest = "/".join(parts[index:])
        if _any_exists([rest], folder):
            return name.removesuffix(rest)
    return None


def _any_exists(names: Iterable[str], folder: str) -> bool:
    return any(not leaves_folder(name) and os.path.isfile(os.path.join(folder, name)) for name in names)

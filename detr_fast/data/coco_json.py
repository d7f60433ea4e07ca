"""Reading annotation files in COCO detection format, also those of Roboflow's exports."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from detr_fast.data.faults import DataError
from detr_fast.data.source import Source

ROBOFLOW_FILE = "_annotations.coco.json"  # lies beside the images of a split

_SECTIONS = ("images", "annotations", "categories")
_FORMAT = 'COCO detection annotations are a JSON object with the lists "images", "annotations" and "categories"'


def read_coco(file: str) -> Source:
    """Read the entries of an annotation file in COCO detection format.

    The categories of a Roboflow export begin with the name of the group of all others, which labels no object. It is
    left out if indeed it does not.

    Args:
        file: The JSON file.

    Raises:
        DataError: The file cannot be read, is not a COCO annotation file, or lists no image.
    """
    try:
        content = json.loads(Path(file).read_bytes().strip() or b"null")
    except OSError as error:
        raise DataError(f"{file}: cannot read the annotation file: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{file}: not a JSON file ({error}); if it was cut short, write or download it again"
        ) from error
    if content is None:
        raise DataError(f"{file}: the annotation file is empty; {_FORMAT}")
    if not isinstance(content, dict):
        raise DataError(f"{file}: contains a {type(content).__name__} instead of an object; {_FORMAT}")
    missing = [f'"{name}"' for name in _SECTIONS if not isinstance(content.get(name), list)]
    if missing:
        raise DataError(f"{file}: has no list {', '.join(missing)}; {_FORMAT}")
    if not content["images"]:
        raise DataError(f'{file}: "images" is empty: a data set needs at least one image')
    source = Source(*(content[name] for name in _SECTIONS))
    if os.path.basename(file) == ROBOFLOW_FILE:
        source.categories = _without_group(source)
    return source


def _without_group(source: Source) -> list[Any]:
    """Return the categories without the one that only groups the others."""
    categories = [entry for entry in source.categories if isinstance(entry, dict)]
    groups = {entry.get("supercategory") for entry in categories if isinstance(entry.get("supercategory"), str)}
    used = [entry.get("category_id") for entry in source.annotations if isinstance(entry, dict)]
    return [
        entry
        for entry in source.categories
        if not isinstance(entry, dict)
        or entry.get("supercategory") != "none"
        or not (isinstance(entry.get("name"), str) and entry["name"] in groups)
        or entry.get("id") in used
    ]

"""Data sets of the library ``datasets`` of Hugging Face."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from detr_fast.data.faults import DataError
from detr_fast.extras import explaining_missing
from detr_fast.images import ImageError, upright_size

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_OPTIONAL = ("area", "iscrowd")


def save_huggingface_dataset(
    dataset: Dataset | IterableDataset,
    directory: str | Path,
    *,
    box_format: Literal["xywh", "xyxy"],
    names: Sequence[str] | None = None,
) -> Path:
    """Write a split of a Hugging Face data set as images and COCO detection JSON.

    The split needs the columns ``image`` and ``objects``, and the latter the fields ``bbox`` and ``category``, and
    perhaps ``area`` and ``iscrowd``. The files of the images are written as they are stored, one after another, to
    ``images``, and the annotations to ``annotations.json``, the faulty ones too, so that
    :func:`~detr_fast.data.check_dataset` names them. The id of an image is the index of its row.

    Args:
        dataset: The split; of a streamed data set, too.
        directory: A directory that is created, or is empty.
        box_format: Whether a box is x, y, width and height (as in COCO) or x1, y1, x2 and y2 (as in Pascal VOC), in
            pixels. The data set does not tell.
        names: The names of the categories, whose indices or names the field ``category`` has. None takes those of its
            type ``ClassLabel``.

    Returns:
        The path of ``annotations.json``.

    Raises:
        DataError: ``directory`` contains files, columns are missing, or the names of the categories are not known.
        ValueError: ``box_format`` is neither of the two.
    """
    with explaining_missing("save_huggingface_dataset"):
        import datasets

    if box_format not in ("xywh", "xyxy"):
        raise ValueError(f'box_format must be "xywh" or "xyxy", got {box_format!r}')
    features = dataset.features or {}
    missing = [name for name in ("image", "objects") if name not in features]
    if missing:
        raise DataError(f"the data set has no column {', '.join(missing)}; its columns are {', '.join(features)}")
    known = list(names) if names is not None else _class_names(features["objects"])
    if not known:
        raise DataError(
            "the field category is no ClassLabel, which would have names; state the names of the categories"
        )
    directory = Path(directory)
    if directory.is_dir() and any(directory.iterdir()):
        raise DataError(f"{directory}: is not empty; choose another directory")
    (directory / "images").mkdir(parents=True, exist_ok=True)
    numbers = {name: number for number, name in enumerate(known)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, row in enumerate(dataset.with_format(None).cast_column("image", datasets.Image(decode=False))):
        images.append(_save_image(row["image"], directory / "images", index))
        for values in _objects(row["objects"]):
            category = values.get("category")
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": numbers.get(category, -1) if isinstance(category, str) else category,
                    "bbox": _xywh(values.get("bbox"), box_format),
                    **{name: values[name] for name in _OPTIONAL if values.get(name) is not None},
                }
            )
    file = directory / "annotations.json"
    categories = [{"id": number, "name": name} for number, name in enumerate(known)]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def _class_names(objects: Any) -> list[str]:
    """Return the names of the categories from the type of the objects, which is a list of structs or the reverse."""
    fields = getattr(objects, "feature", objects)
    category = fields.get("category") if isinstance(fields, dict) else None
    return list(getattr(getattr(category, "feature", category), "names", None) or [])


def _objects(objects: dict[str, list[Any]] | list[dict[str, Any]] | None) -> Iterator[dict[str, Any]]:
    """Yield the fields of each object of a row, which is a list of structs or a struct of lists."""
    if isinstance(objects, dict):
        columns = {name: values for name, values in objects.items() if isinstance(values, list)}
        longest = max(map(len, columns.values()), default=0)
        for k in range(longest):
            yield {name: values[k] for name, values in columns.items() if k < len(values)}
    else:
        yield from objects or []


def _xywh(box: Any, box_format: str) -> Any:
    """Return a box as x, y, width and height; what is no box as it is."""
    if box_format == "xywh" or not isinstance(box, list) or len(box) != 4 or None in box:
        return box
    left, top, right, bottom = box
    return [left, top, right - left, bottom - top]


def _save_image(image: dict[str, Any] | None, directory: Path, index: int) -> dict[str, Any]:
    """Write the file of an image, and return its entry; the size is that of the upright image."""
    content, path = (image or {}).get("bytes"), (image or {}).get("path")
    name = f"{index:08d}{_suffix(content, path)}"
    entry: dict[str, Any] = {"id": index, "file_name": name}
    if content is not None:
        (directory / name).write_bytes(content)
    elif path is not None and os.path.isfile(path):
        shutil.copyfile(path, directory / name)
    else:
        return entry
    with contextlib.suppress(ImageError):
        entry["width"], entry["height"] = upright_size(directory / name)
    return entry


def _suffix(content: bytes | None, path: str | None) -> str:
    """Return the suffix of the format of an image."""
    if content is None:
        return os.path.splitext(path or "")[1]
    try:
        with Image.open(io.BytesIO(content)) as image:
            return {"JPEG": ".jpg"}.get(image.format or "", f".{(image.format or '').lower()}")
    except Exception:  # as of a broken file, which check_dataset names
        return ".broken"

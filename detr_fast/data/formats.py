"""The formats of data sets, which are recognized by the path of the annotations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from detr_fast.data.coco_json import ROBOFLOW_FILE, read_coco
from detr_fast.data.faults import DataError
from detr_fast.data.repairs import repair
from detr_fast.data.source import Source
from detr_fast.data.voc import read_voc
from detr_fast.data.yolo import CLASSES_FILE, read_yolo

if TYPE_CHECKING:
    from detr_fast.data.annotations import Category

FORMATS = (
    "a .json file (COCO), "
    f"a directory with {ROBOFLOW_FILE} (Roboflow), "
    "a .yaml file with names (YOLO), "
    f"a directory of label files with {CLASSES_FILE} (YOLO), "
    "a directory of .xml files (Pascal VOC), "
    "or a .txt file in ImageSets/Main (Pascal VOC)"
)


def read_source(path: str, folder: str, imposed: Sequence[Category] | None) -> Source:
    """Read the entries of a data set.

    Args:
        path: The annotations; see :data:`FORMATS`.
        folder: The directory of the images.
        imposed: The categories of a trained model, whose ids a format with names only takes over.

    Raises:
        DataError: No format, or several, are recognized, or the reader raised it.
    """
    if os.path.isdir(path):
        return _read_directory(path, folder, imposed)
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".json":
        return _read_coco(path, folder)
    if not os.path.isfile(path):
        raise DataError(f"{path}: there is no such file or directory; expected {FORMATS}")
    if suffix in (".yaml", ".yml"):
        return read_yolo(path, folder, imposed)
    if suffix == ".txt" and os.path.basename(os.path.dirname(os.path.dirname(os.path.abspath(path)))) == "ImageSets":
        return read_voc(path, folder, imposed)
    raise DataError(f"{path}: the format of these annotations is not known; expected {FORMATS}")


def _read_coco(file: str, folder: str) -> Source:
    source = read_coco(file)
    repair(source, file, folder)
    return source


def _read_directory(path: str, folder: str, imposed: Sequence[Category] | None) -> Source:
    names = {entry.name for entry in os.scandir(path) if entry.is_file()}
    recognized = {
        ROBOFLOW_FILE: ROBOFLOW_FILE in names,
        CLASSES_FILE: CLASSES_FILE in names,
        ".xml files": any(name.lower().endswith(".xml") for name in names),
    }
    found = [name for name, is_there in recognized.items() if is_there]
    if not found:
        raise DataError(f"{path}: a directory without {', '.join(recognized)}; expected {FORMATS}")
    if len(found) > 1:
        raise DataError(f"{path}: has {' and '.join(found)}, so that it is not clear which of them to read")
    if found[0] == ROBOFLOW_FILE:
        return _read_coco(os.path.join(path, ROBOFLOW_FILE), folder)
    if found[0] == CLASSES_FILE:
        return read_yolo(os.path.join(path, CLASSES_FILE), folder, imposed)
    return read_voc(path, folder, imposed)

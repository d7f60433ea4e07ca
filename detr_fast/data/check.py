"""Every fault of a data set, before training meets it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from detr_fast.data.annotations import ImageEntry, read_annotations
from detr_fast.data.faults import Fault
from detr_fast.images import ImageError, read_image


def check_dataset(image_dir: str | Path, annotation_file: str | Path, *, num_workers: int | None = None) -> list[Fault]:
    """All faults of a COCO detection data set, each with file and id; every picture is decoded completely.

    Args:
        image_dir: the folder that the file names in the annotation file are relative to.
        annotation_file: COCO detection JSON.
        num_workers: how many threads decode pictures; None for as many as suit the machine.

    Raises:
        DataError: there is nothing to check, because the annotation file or the folder cannot be used at all.
    """
    annotations = read_annotations(annotation_file, image_dir)
    with ThreadPoolExecutor(num_workers) as pool:
        found = list(pool.map(_picture_fault, annotations.images))
    return annotations.faults + [fault for fault in found if fault is not None]


def _picture_fault(entry: ImageEntry) -> Fault | None:
    try:
        return entry.size_fault(read_image(entry.path))
    except ImageError as error:
        return entry.unreadable(error)

"""Validation of a data set before training."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from detr_fast.data.annotations import ImageEntry, read_annotations
from detr_fast.data.faults import Fault
from detr_fast.images import ImageError, read_image


def check_dataset(image_dir: str | Path, annotation_file: str | Path, *, num_workers: int | None = None) -> list[Fault]:
    """Find all faults of a data set in COCO detection format; every image is decoded completely.

    Args:
        image_dir: The directory to which the file names in the annotation file are relative.
        annotation_file: COCO detection JSON.
        num_workers: Number of threads that decode images; None for the default of ``ThreadPoolExecutor``.

    Returns:
        The faults, each with its file and ids.

    Raises:
        DataError: The annotation file or the directory cannot be used at all.
    """
    annotations = read_annotations(annotation_file, image_dir)
    with ThreadPoolExecutor(num_workers) as pool:
        found = list(pool.map(_image_fault, annotations.images))
    return annotations.faults + [fault for fault in found if fault is not None]


def _image_fault(entry: ImageEntry) -> Fault | None:
    try:
        return entry.size_fault(read_image(entry.path).size)
    except ImageError as error:
        return entry.unreadable(error)

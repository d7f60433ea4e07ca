"""Validation of a data set before training."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from detr_fast.data.annotations import ImageEntry, Orientation, read_annotations
from detr_fast.data.faults import Fault
from detr_fast.images import ImageError

DEFAULT_QUERIES = 100  # of DETR


def check_dataset(
    image_dir: str | Path,
    annotation_file: str | Path,
    *,
    num_queries: int = DEFAULT_QUERIES,
    orientation: Orientation = "upright",
    num_workers: int | None = None,
    figures: str | Path | None = None,
) -> list[Fault]:
    """Find all faults of a data set; every image is decoded completely.

    Args:
        image_dir: The directory of the images.
        annotation_file: As for :class:`~detr_fast.data.CocoDetection`.
        num_queries: Number of queries of the model, which is the number of objects that it can find in an image.
        orientation: What the boxes of an image with an EXIF orientation refer to where its stated size does not tell:
            the ``"upright"`` image or the pixels as ``"stored"``.
        num_workers: Number of threads that decode images; None for the default of ``ThreadPoolExecutor``.

        figures: Directory for drawings of the images with faults, of the first of each kind; None for none.

    Returns:
        The faults, each with its file and its line or ids.

    Raises:
        DataError: The annotation file or the directory cannot be used at all.
    """
    annotations = read_annotations(annotation_file, image_dir)
    with ThreadPoolExecutor(num_workers) as pool:
        found = list(pool.map(lambda entry: _image_faults(entry, orientation), annotations.images))
    many_objects = annotations.many_objects(str(annotation_file), num_queries)
    faults = annotations.faults + many_objects + [fault for faults in found for fault in faults]
    if figures is not None:
        from detr_fast.data.figures import draw_faults  # imports matplotlib

        draw_faults(figures, annotations, faults, orientation)
    return faults


def _image_faults(entry: ImageEntry, orientation: Orientation) -> list[Fault]:
    try:
        return entry.read(orientation)[1]
    except ImageError as error:
        return [entry.unreadable(error)]

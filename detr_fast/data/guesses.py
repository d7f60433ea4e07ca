"""Faults that show in all objects of a data set together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from detr_fast.data.faults import Fault, FaultKind
from detr_fast.data.rules import EDGE_TOLERANCE, Size, finite_corners

FEWEST_CORNERS = 10  # boxes without which nothing is guessed
_FAR = 1.1  # sides of the image


def faults_of_all(
    boxes: Sequence[Sequence[float]],
    annotations: Collection[Any],
    sizes: Mapping[int, Size | None],
    faults: Sequence[Fault],
    file: str,
) -> Iterator[Fault]:
    """Yield the faults that only all entries of a data set together show.

    Args:
        boxes: The usable boxes, xyxy in pixels.
        annotations: All annotations, whether usable or not.
        sizes: (width, height) of each listed image by its id; None where the file does not state it.
        faults: The faults of the entries.
        file: The annotation file, which the faults name.
    """
    if not boxes:
        yield Fault(FaultKind.NO_ANNOTATION, file, None, None, "there is nothing to learn, and nothing to find")
    elif all(0 <= value <= 1 for box in boxes for value in box) and (1, 1) not in sizes.values():
        message = f"all {len(boxes)} boxes lie in the first pixel of their image; COCO's boxes are in pixels"
        yield Fault(FaultKind.BOXES_AS_FRACTIONS, file, None, None, message)
    else:
        leaving = sum(fault.kind in (FaultKind.BOX_BEYOND_IMAGE, FaultKind.BOX_OUTSIDE_IMAGE) for fault in faults)
        if 4 * leaving >= len(annotations) >= FEWEST_CORNERS and _are_corners(annotations, sizes):
            message = (
                f"{leaving} of {len(annotations)} boxes leave their image as COCO's [x, y, width, height], and as "
                "corners [x1, y1, x2, y2] none does; convert them to [x1, y1, x2 - x1, y2 - y1]"
            )
            yield Fault(FaultKind.BOXES_AS_CORNERS, file, None, None, message)


def _are_corners(annotations: Collection[Any], sizes: Mapping[int, Size | None]) -> bool:
    """Whether each box lies within its image as corners, and many leave it by far as COCO's boxes.

    A box around all of an image is about the same as both, and may leave it by a little.
    """
    far = 0
    for entry in annotations:
        if finite_corners(entry) is None:
            return False
        image = entry.get("image_id")
        size = sizes.get(image) if isinstance(image, int) else None
        left, top, right, bottom = entry["bbox"]
        if size is None or not (left < right <= size[0] + EDGE_TOLERANCE and top < bottom <= size[1] + EDGE_TOLERANCE):
            return False
        far += left + right > _FAR * size[0] or top + bottom > _FAR * size[1]
    return 4 * far >= len(annotations)

"""The categories of COCO, as the classes of published weights."""

from __future__ import annotations

from typing import Any

from detr_fast.checkpoints.formats import COCO_ROWS

# In the order of their ids, which are those of COCO_ROWS without no-object.
NAMES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich"),
    *("orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed"),
    *("dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven"),
    *("toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
UNUSED = "N/A"  # the name of an id that no category has


def coco_categories(*, contiguous: bool) -> list[dict[str, Any]]:
    """Return the ``id`` and the ``name`` of each class of a DETR that was trained on COCO.

    Args:
        contiguous: Whether the classes are the 80 categories, instead of the ids from 0 to 90.
    """
    used = dict(zip(COCO_ROWS[:-1], NAMES, strict=True))
    return [{"id": i, "name": used.get(i, UNUSED)} for i in (used if contiguous else range(91))]

"""Detections for the library supervision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from detr_fast.extras import explaining_missing

if TYPE_CHECKING:
    from supervision import Detections


def to_supervision(found: Mapping[str, Any]) -> Detections:
    """Convert the detections in an image to ``supervision.Detections``, for its annotators and trackers.

    Args:
        found: The n detections in an image, as :meth:`detr_fast.DETR.predict` returns them: ``boxes`` [n,4], xyxy in
            pixels, ``scores`` [n], ``labels`` [n], and perhaps ``names``.

    Returns:
        ``supervision.Detections`` with the same order of the detections; its ``data["class_name"]`` has the names, if
        there are any.

    Raises:
        ModuleNotFoundError: supervision is not installed.
    """
    with explaining_missing("to_supervision"):
        from supervision import Detections

    data: dict[str, Any] = {}
    if "names" in found:
        data["class_name"] = np.array(found["names"], dtype=np.str_)
    return Detections(
        xyxy=found["boxes"].numpy(),
        confidence=found["scores"].numpy(),
        class_id=found["labels"].numpy(),
        data=data,
    )

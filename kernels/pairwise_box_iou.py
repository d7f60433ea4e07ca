"""Pairwise IoU, GIoU and IoF by the kernels of :mod:`.pairwise`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .pairwise import pairwise, pairwise_backward


def pairwise_box_iou(boxes1: Tensor, boxes2: Tensor, kind: str, box_format: str, eps: float) -> Tensor:
    """Compute [K,N,M] of [K,N,4] and [K,M,4]."""
    return pairwise(boxes1, boxes2, **_options(kind, box_format, eps))


def pairwise_box_iou_backward(
    grads: Sequence[Tensor],
    needed: Sequence[bool],
    boxes1: Tensor,
    boxes2: Tensor,
    kind: str,
    box_format: str,
    eps: float,
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the gradients of both sets of boxes."""
    return pairwise_backward(grads, needed, boxes1, boxes2, **_options(kind, box_format, eps))


def _options(kind: str, box_format: str, eps: float) -> dict[str, Any]:
    return {"KIND": kind, "CXCYWH": box_format == "cxcywh", "GIOU_EPS": eps}

"""Pairwise L1 distances by the kernels of :mod:`.pairwise`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .pairwise import pairwise, pairwise_backward

_OPTIONS: dict[str, Any] = {"KIND": "l1", "CXCYWH": False, "GIOU_EPS": 0.0}


def pairwise_box_l1(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Compute [K,N,M] of [K,N,4] and [K,M,4]."""
    return pairwise(boxes1, boxes2, **_OPTIONS)


def pairwise_box_l1_backward(
    grads: Sequence[Tensor], needed: Sequence[bool], boxes1: Tensor, boxes2: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the gradients of both sets of boxes."""
    return pairwise_backward(grads, needed, boxes1, boxes2, **_OPTIONS)

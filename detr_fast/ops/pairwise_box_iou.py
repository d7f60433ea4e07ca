"""IoU, generalized IoU and IoF of every box of one set with every box of another."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from detr_fast.ops.boxes import box_cxcywh_to_xyxy, box_iou, compute_dtype, flatten_pairs
from detr_fast.ops.custom_op import Differentiable
from detr_fast.ops.dispatch import register_op


def pairwise_box_iou(
    boxes1: Tensor,
    boxes2: Tensor,
    *,
    kind: Literal["iou", "giou", "iof"] = "iou",
    box_format: Literal["xyxy", "cxcywh"] = "xyxy",
    eps: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Compute the pairwise IoU, the generalized IoU (https://arxiv.org/abs/1902.09630), or the IoF.

    The IoF, intersection over foreground, is the part of the first box that the second one covers.

    Differentiable in both arguments. Computed in float32, or in float64 where both arguments are.

    Args:
        boxes1: [...,N,4], in any unit.
        boxes2: [...,M,4], in the same unit; leading dimensions broadcast.
        kind: ``"iou"`` or ``"iof"`` in [0,1], or ``"giou"`` in [-1,1].
        box_format: of both arguments.
        eps: the smallest area to divide by, in squared units of the boxes. With 0 a pair without any area has IoU 0,
            and GIoU 0 where it does not even enclose an area, and a first box without an area has IoF 0.
        backend: a backend by name, or None for the fastest.

    Returns:
        [...,N,M].

    Raises:
        ValueError: a shape or an option does not fit.
        BackendError: the backend asked for cannot run here.
    """
    if kind not in ("iou", "giou", "iof"):
        raise ValueError(f"kind must be 'iou', 'giou' or 'iof', got {kind!r}")
    if box_format not in ("xyxy", "cxcywh"):
        raise ValueError(f"box_format must be 'xyxy' or 'cxcywh', got {box_format!r}")
    flat1, flat2, leading = flatten_pairs(boxes1, boxes2)
    iou = _pairwise_box_iou(flat1, flat2, kind, box_format, float(eps), backend=backend)
    return iou.reshape(*leading, *iou.shape[-2:])


@register_op
def _pairwise_box_iou(
    boxes1: Differentiable,  # [K,N,4]
    boxes2: Differentiable,  # [K,M,4]
    kind: str,
    box_format: str,
    eps: float,
) -> Tensor:  # [K,N,M]
    dtype = compute_dtype(boxes1, boxes2)
    boxes1, boxes2 = boxes1.to(dtype)[:, :, None], boxes2.to(dtype)[:, None]
    if box_format == "cxcywh":
        boxes1, boxes2 = box_cxcywh_to_xyxy(boxes1), box_cxcywh_to_xyxy(boxes2)
    return box_iou(boxes1, boxes2, kind=kind, eps=eps)

"""Every box of one set against every box of another: IoU, generalised IoU and L1."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from detr_fast.ops.backends import Column, Functions, reference, triton
from detr_fast.ops.library import Op


def pairwise_box_iou(
    boxes1: Tensor,  # [...,N,4]
    boxes2: Tensor,  # [...,M,4]
    *,
    kind: Literal["iou", "giou"] = "iou",
    box_format: Literal["xyxy", "cxcywh"] = "xyxy",
    eps: float = 0.0,
    backend: str | None = None,
) -> Tensor:  # [...,N,M]
    """Intersection over union, or the generalised one (https://arxiv.org/abs/1902.09630).

    Differentiable in both arguments. Computed in float32, or in float64 where both arguments are.

    Args:
        boxes1, boxes2: boxes in any one unit; leading dimensions broadcast.
        kind: ``"iou"`` in [0,1] or ``"giou"`` in [-1,1].
        box_format: of both arguments.
        eps: the smallest union and enclosing area, in squared units of the boxes. With 0 a pair
            without any area has IoU 0, and GIoU 0 where it does not even enclose an area.
        backend: a backend by name, or None for the fastest.

    Raises:
        ValueError: a shape or an option does not fit.
        BackendError: the backend asked for cannot run here.
    """
    _check_boxes(boxes1, boxes2)
    if kind not in ("iou", "giou"):
        raise ValueError(f"kind must be 'iou' or 'giou', got {kind!r}")
    if box_format not in ("xyxy", "cxcywh"):
        raise ValueError(f"box_format must be 'xyxy' or 'cxcywh', got {box_format!r}")
    return _pairwise(boxes1, boxes2, kind, box_format == "cxcywh", eps, backend)


def pairwise_box_l1(
    boxes1: Tensor,  # [...,N,4]
    boxes2: Tensor,  # [...,M,4]
    *,
    backend: str | None = None,
) -> Tensor:  # [...,N,M]
    """Sum of the four coordinates' absolute differences, in the boxes' unit.

    Differentiable in both arguments. Computed in float32, or in float64 where both arguments are. Leading
    dimensions broadcast.

    Raises:
        ValueError: a shape does not fit.
        BackendError: the backend asked for cannot run here.
    """
    _check_boxes(boxes1, boxes2)
    return _pairwise(boxes1, boxes2, "l1", False, 0.0, backend)


def _pairwise(boxes1: Tensor, boxes2: Tensor, kind: str, centres: bool, eps: float, backend: str | None) -> Tensor:
    leading = torch.broadcast_shapes(boxes1.shape[:-2], boxes2.shape[:-2])
    pairs = OP(_flatten(boxes1, leading), _flatten(boxes2, leading), kind, centres, float(eps), backend=backend)
    return pairs.reshape(*leading, *pairs.shape[-2:])


def _flatten(boxes: Tensor, leading: torch.Size) -> Tensor:  # [...,N,4] -> [K,N,4], without a copy where it can be
    return boxes.contiguous().expand(*leading, *boxes.shape[-2:]).reshape(leading.numel(), *boxes.shape[-2:])


def box_cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Centre and size to corners: [...,4] to [...,4]."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat((centre - size / 2, centre + size / 2), -1)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype to compute in: float64 where all tensors are, else float32."""
    return torch.float64 if all(t.dtype == torch.float64 for t in tensors) else torch.float32


def box_iou(boxes1: Tensor, boxes2: Tensor, *, kind: str, eps: float) -> Tensor:
    """IoU or GIoU of corner boxes [...,4] that broadcast against each other: [...]."""
    low = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    high = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    intersection = _product((high - low).clamp(min=0))
    union = _area(boxes1) + _area(boxes2) - intersection
    iou = _ratio(intersection, union, eps)
    if kind == "iou":
        return iou
    low = torch.minimum(boxes1[..., :2], boxes2[..., :2])
    high = torch.maximum(boxes1[..., 2:], boxes2[..., 2:])
    enclosure = _product(high - low)
    if eps > 0:
        enclosure = enclosure.clamp(min=eps)
        union = union.clamp(min=eps)
    return iou - _ratio(enclosure - union, enclosure, eps)


def _area(boxes: Tensor) -> Tensor:
    return _product(boxes[..., 2:] - boxes[..., :2])


def _product(sides: Tensor) -> Tensor:  # [...,2] -> [...]
    width, height = sides.unbind(-1)
    return width * height


def _ratio(part: Tensor, whole: Tensor, eps: float) -> Tensor:
    if eps > 0:
        return part / whole.clamp(min=eps)
    # Where there is no area the ratio is 0, and so is its gradient; dividing by 1 there keeps it so.
    empty = whole == 0
    return torch.where(empty, 0.0, part / torch.where(empty, 1.0, whole))


def _check_boxes(boxes1: Tensor, boxes2: Tensor) -> None:
    for name, boxes in (("boxes1", boxes1), ("boxes2", boxes2)):
        if boxes.dim() < 2 or boxes.shape[-1] != 4 or not boxes.is_floating_point():
            raise ValueError(f"{name} must be floating point [...,N,4], got {boxes.dtype} {list(boxes.shape)}")


def pairwise_box_reference(
    a: Tensor,  # [K,N,4]
    b: Tensor,  # [K,M,4]
    kind: str,  # "iou", "giou" or "l1"
    centres: bool,  # whether boxes are cxcywh, and not corners
    eps: float,
) -> Tensor:  # [K,N,M]
    dtype = compute_dtype(a, b)
    a, b = a.to(dtype)[:, :, None], b.to(dtype)[:, None]
    if kind == "l1":
        return (a - b).abs().sum(-1)
    if centres:
        a, b = box_cxcywh_to_xyxy(a), box_cxcywh_to_xyxy(b)
    return box_iou(a, b, kind=kind, eps=eps)


def _load_triton() -> Functions:
    from detr_fast.kernels.pairwise_box import pairwise_box, pairwise_box_backward

    return {"pairwise_box": pairwise_box, "pairwise_box_backward": pairwise_box_backward}


COLUMN = Column("pairwise_box", [triton(_load_triton), reference({"pairwise_box": pairwise_box_reference})])


def _fake(a: Tensor, b: Tensor, kind: str, centres: bool, eps: float) -> Tensor:
    return a.new_empty((a.shape[0], a.shape[1], b.shape[1]), dtype=compute_dtype(a, b))


OP = Op(
    COLUMN,
    "pairwise_box",
    {"a": "Tensor", "b": "Tensor", "kind": "str", "centres": "bool", "eps": "float"},
    "Tensor",
    _fake,
    differentiable=2,
)

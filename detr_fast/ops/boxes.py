"""Geometry of boxes in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from detr_fast.ops.arguments import check_tensor


def box_cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert centers and sizes to corners: [...,4] to [...,4]."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat((center - size / 2, center + size / 2), -1)


def box_xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert corners to centers and sizes: [...,4] to [...,4]."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), -1)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype to compute in: float64 where all tensors are, else float32."""
    return torch.float64 if all(t.dtype == torch.float64 for t in tensors) else torch.float32


def box_iou(boxes1: Tensor, boxes2: Tensor, *, kind: str, eps: float) -> Tensor:
    """Compute the IoU, GIoU or IoF of boxes that broadcast against each other.

    Args:
        boxes1, boxes2: xyxy [...,4].
        kind: ``"iou"``, ``"giou"`` (https://arxiv.org/abs/1902.09630), or ``"iof"``, the intersection divided by the
            area of the first box.
        eps: smallest area to divide by; with 0 a pair without any area has IoU 0, and GIoU 0 where it does not even
            enclose an area, and a first box without an area has IoF 0.

    Returns:
        [...].
    """
    low = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    high = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    intersection = _product(_at_least(high - low, 0.0))
    if kind == "iof":
        return _ratio(intersection, _area(boxes1), eps)
    union = _area(boxes1) + _area(boxes2) - intersection
    iou = _ratio(intersection, union, eps)
    if kind == "iou":
        return iou
    low = torch.minimum(boxes1[..., :2], boxes2[..., :2])
    high = torch.maximum(boxes1[..., 2:], boxes2[..., 2:])
    enclosure = _product(high - low)
    if eps > 0:
        enclosure = _at_least(enclosure, eps)
        union = _at_least(union, eps)
    return iou - _ratio(enclosure - union, enclosure, eps)


def _area(boxes: Tensor) -> Tensor:
    return _product(boxes[..., 2:] - boxes[..., :2])


def _at_least(values: Tensor, lowest: float) -> Tensor:
    """Clamp values from below. The gradient of a value that equals ``lowest`` is 1 on every release of PyTorch;
    that of :func:`torch.clamp` is 1 up to PyTorch 2.13, and 0 in 2.15.
    """
    return torch.where(values >= lowest, values, values.clamp(min=lowest))


def _product(sides: Tensor) -> Tensor:  # [...,2] -> [...]
    width, height = sides.unbind(-1)
    return width * height


def _ratio(part: Tensor, total: Tensor, eps: float) -> Tensor:
    if eps > 0:
        return part / _at_least(total, eps)
    # Where there is no area the ratio is 0, and so is its gradient; dividing by 1 there keeps it so.
    empty = total == 0
    return torch.where(empty, 0.0, part / torch.where(empty, 1.0, total))


def flatten_pairs(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor, torch.Size]:
    """Broadcast the leading dimensions of two sets of boxes, without a copy where possible.

    Args:
        boxes1: [...,N,4].
        boxes2: [...,M,4].

    Returns:
        [K,N,4], [K,M,4], and the leading dimensions, which K is the product of.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a shape or dtype does not fit.
    """
    for name, boxes in (("boxes1", boxes1), ("boxes2", boxes2)):
        check_tensor(name, boxes)
        if boxes.dim() < 2 or boxes.shape[-1] != 4 or not boxes.is_floating_point():
            raise ValueError(f"{name} must be floating point [...,N,4], got {boxes.dtype} {list(boxes.shape)}")
    leading = _broadcast_leading(boxes1, boxes2)
    return _flatten(boxes1, leading), _flatten(boxes2, leading), leading


def _broadcast_leading(boxes1: Tensor, boxes2: Tensor) -> torch.Size:
    if boxes1.shape[:-2] == boxes2.shape[:-2]:
        return boxes1.shape[:-2]
    # torch.broadcast_shapes imports sympy, which takes seconds.
    empty1, empty2 = (boxes.flatten(-2)[..., :0] for boxes in (boxes1, boxes2))
    return torch.broadcast_tensors(empty1, empty2)[0].shape[:-1]


def _flatten(boxes: Tensor, leading: torch.Size) -> Tensor:
    return boxes.contiguous().expand(*leading, *boxes.shape[-2:]).reshape(leading.numel(), *boxes.shape[-2:])

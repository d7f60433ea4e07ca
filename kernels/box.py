"""Boxes inside kernels: IoU, GIoU, IoF and their gradients; the formulas are those of detr_fast.ops.boxes."""

from __future__ import annotations

import triton
import triton.language as tl

_NAN = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def load_box(ptr, mask, COMPUTE: tl.constexpr):
    """The four numbers of each box, from pointers to its first."""
    return (
        tl.load(ptr, mask=mask, other=0).to(COMPUTE),
        tl.load(ptr + 1, mask=mask, other=0).to(COMPUTE),
        tl.load(ptr + 2, mask=mask, other=0).to(COMPUTE),
        tl.load(ptr + 3, mask=mask, other=0).to(COMPUTE),
    )


@triton.jit
def corners(cx, cy, width, height):
    """Corners of boxes given by center and size."""
    return cx - width * 0.5, cy - height * 0.5, cx + width * 0.5, cy + height * 0.5


@triton.jit
def l1(a0, a1, a2, a3, b0, b1, b2, b3):
    """Sum of absolute differences."""
    return tl.abs(a0 - b0) + tl.abs(a1 - b1) + tl.abs(a2 - b2) + tl.abs(a3 - b3)


@triton.jit
def _maximum(a, b):
    return tl.maximum(a, b, propagate_nan=_NAN)


@triton.jit
def _minimum(a, b):
    return tl.minimum(a, b, propagate_nan=_NAN)


@triton.jit
def _at_least(area, GIOU_EPS: tl.constexpr):
    """The divisor that stands for ``area``, and whether it depends on it."""
    if GIOU_EPS > 0:
        return _maximum(area, tl.full((), GIOU_EPS, area.dtype)), area >= GIOU_EPS
    return tl.where(area == 0, 1.0, area), area != 0


@triton.jit
def box_iou(ax0, ay0, ax1, ay1, bx0, by0, bx1, by1, KIND: tl.constexpr, GIOU_EPS: tl.constexpr):
    """IoU, GIoU or IoF (KIND) of corner boxes that broadcast; GIOU_EPS is the smallest area to divide by."""
    width = _maximum(_minimum(ax1, bx1) - _maximum(ax0, bx0), 0.0)
    height = _maximum(_minimum(ay1, by1) - _maximum(ay0, by0), 0.0)
    intersection = width * height
    if KIND == "iof":
        divisor, depends = _at_least((ax1 - ax0) * (ay1 - ay0), GIOU_EPS)
        iof = intersection / divisor
        if GIOU_EPS == 0:
            iof = tl.where(depends, iof, 0.0)
        return iof
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - intersection
    union_divisor, depends = _at_least(union, GIOU_EPS)
    iou = intersection / union_divisor
    if GIOU_EPS == 0:
        iou = tl.where(depends, iou, 0.0)
    if KIND == "iou":
        return iou
    enclosure = (_maximum(ax1, bx1) - _minimum(ax0, bx0)) * (_maximum(ay1, by1) - _minimum(ay0, by0))
    divisor, depends = _at_least(enclosure, GIOU_EPS)
    if GIOU_EPS > 0:
        return iou - (divisor - union_divisor) / divisor
    return iou - tl.where(depends, (enclosure - union) / divisor, 0.0)


@triton.jit
def _max_share(a, b):
    """The share of a in the gradient of max(a, b): one half each where they are equal, as in PyTorch."""
    return tl.where(a > b, 1.0, tl.where(a == b, 0.5, 0.0)).to(a.dtype)


@triton.jit
def _axis_grad(a0, a1, b0, b1, d_overlap, d_hull, d_own):
    """Gradients of the two corners of a along one axis, from those of the overlap's, the hull's and a's own side."""
    overlap = _minimum(a1, b1) - _maximum(a0, b0)
    d_overlap = tl.where(overlap >= 0, d_overlap, 0.0)
    d_low = -d_overlap * _max_share(a0, b0) - d_hull * _max_share(b0, a0) - d_own
    d_high = d_overlap * _max_share(b1, a1) + d_hull * _max_share(a1, b1) + d_own
    return d_low, d_high


@triton.jit
def box_iou_grad(grad, ax0, ay0, ax1, ay1, bx0, by0, bx1, by1, KIND: tl.constexpr, GIOU_EPS: tl.constexpr):
    """Gradient of :func:`box_iou`'s result, ``grad``, to the gradients of a's four corners.

    The IoF is divided by the area of a, or of b where KIND is "iof of b".
    """
    own_width, own_height = ax1 - ax0, ay1 - ay0
    width = _maximum(_minimum(ax1, bx1) - _maximum(ax0, bx0), 0.0)
    height = _maximum(_minimum(ay1, by1) - _maximum(ay0, by0), 0.0)
    intersection = width * height
    if KIND == "iof of b":
        union = (bx1 - bx0) * (by1 - by0)
    elif KIND == "iof":
        union = own_width * own_height
    else:
        union = own_width * own_height + (bx1 - bx0) * (by1 - by0) - intersection
    union_divisor, union_depends = _at_least(union, GIOU_EPS)
    d_intersection = grad / union_divisor
    if GIOU_EPS == 0:
        d_intersection = tl.where(union_depends, d_intersection, 0.0)
    d_union = tl.where(union_depends, -grad * (intersection / union_divisor) / union_divisor, 0.0)
    hull_width = _maximum(ax1, bx1) - _minimum(ax0, bx0)
    hull_height = _maximum(ay1, by1) - _minimum(ay0, by0)
    d_enclosure = tl.zeros_like(intersection)
    if KIND == "giou":
        enclosure = hull_width * hull_height
        divisor, depends = _at_least(enclosure, GIOU_EPS)
        # giou = iou - 1 + union / enclosure
        if GIOU_EPS > 0:
            d_union += tl.where(union_depends, grad / divisor, 0.0)
            d_enclosure = tl.where(depends, -grad * (union_divisor / divisor) / divisor, 0.0)
        else:
            d_union += tl.where(depends, grad / divisor, 0.0)
            d_enclosure = tl.where(depends, -grad * (union / divisor) / divisor, 0.0)
    if KIND == "iof of b":
        d_union = tl.zeros_like(intersection)  # a is no part of the divisor
    elif KIND != "iof":
        d_intersection -= d_union
    dx0, dx1 = _axis_grad(ax0, ax1, bx0, bx1, d_intersection * height, d_enclosure * hull_height, d_union * own_height)
    dy0, dy1 = _axis_grad(ay0, ay1, by0, by1, d_intersection * width, d_enclosure * hull_width, d_union * own_width)
    return dx0, dy0, dx1, dy1

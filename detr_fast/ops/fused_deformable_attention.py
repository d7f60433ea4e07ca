"""Multi-scale deformable attention at offsets from reference points, weighted by a softmax of logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from detr_fast.ops.custom_op import Differentiable
from detr_fast.ops.deformable_sampling import (
    SpatialShapes,
    check_method,
    check_value,
    flatten_points,
    flatten_weights,
    is_deterministic,
    sample,
    widest_dtype,
)
from detr_fast.ops.dispatch import register_op


def fused_deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]] | Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    *,
    points_per_level: Sequence[int] | None = None,
    offset_scale: float = 0.5,
    method: Literal["default", "discrete"] = "default",
    deterministic: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """Compute multi-scale deformable attention at offsets from reference points, weighted by a softmax of logits.

    Equal to :func:`multi_scale_deformable_attention` with the softmax of the logits over all points as attention
    weights, and with these sampling locations:

    - reference points (x, y): ``(x, y) + offset / (width, height)``, with width and height of the level;
    - reference boxes (x, y, w, h): ``(x, y) + offset / P * (w, h) * offset_scale``, with P the level's number of
      points.

    A point contributes nothing, and its offset has the gradient zero, where its offset or its reference point is not
    finite. Neither locations nor weights are stored, and the backward pass needs nothing but the arguments.
    Differentiable in ``value``, ``reference_points``, ``sampling_offsets`` and ``attention_logits``; twice only with
    the reference.

    Args:
        value: [B,S,H,D], as in :func:`multi_scale_deformable_attention`.
        spatial_shapes: as in :func:`multi_scale_deformable_attention`.
        reference_points: [B,Q,L,2] or [B,Q,L,4], points or boxes in fractions of each level; [B,Q,1,2] or [B,Q,1,4]
            for the same in all levels.
        sampling_offsets: [B,Q,H,L,P,2], or [B,Q,H,N,2] if ``points_per_level`` is given; x first.
        attention_logits: [B,Q,H,L,P] or [B,Q,H,N].
        points_per_level: as in :func:`multi_scale_deformable_attention`.
        offset_scale: factor of the offsets from boxes: 0.5 in Deformable DETR (https://arxiv.org/abs/2010.04159) and
            most of its descendants, an option of RT-DETRv2 and D-FINE. Without effect where there are points.
        method: as in :func:`multi_scale_deformable_attention`.
        deterministic: as in :func:`multi_scale_deformable_attention`.
        backend: a backend by name, or None for the fastest.

    Returns:
        [B,Q,H*D], of the dtype of ``value``. Computed in float64 where an argument is float64, else in float32.

    Raises:
        ValueError: shapes or devices do not fit together, or an option is out of its range.
        BackendError: the backend asked for cannot run here.
    """
    check_method(method)
    deterministic = is_deterministic(deterministic)
    shapes = SpatialShapes.of(spatial_shapes)
    check_value(value, shapes)
    offsets, counts = flatten_points("sampling_offsets", sampling_offsets, value, shapes, points_per_level)
    logits = flatten_weights("attention_logits", attention_logits, offsets)
    _check_reference_points(reference_points, offsets, shapes.num_levels)
    return _fused_deformable_attention(
        value,
        reference_points,
        offsets,
        logits,
        shapes,
        counts,
        float(offset_scale),
        method,
        deterministic,
        backend=backend,
        feature="deterministic float64"
        if deterministic and widest_dtype(value, reference_points, offsets, logits) == torch.float64
        else None,
    )


@register_op
def _fused_deformable_attention(
    value: Differentiable,  # [B,S,H,D]
    reference_points: Differentiable,  # [B,Q,L|1,2|4]
    sampling_offsets: Differentiable,  # [B,Q,H,N,2]
    attention_logits: Differentiable,  # [B,Q,H,N]
    shapes: SpatialShapes,
    points_per_level: list[int],
    offset_scale: float,
    method: str,
    deterministic: bool,
) -> Tensor:  # [B,Q,H*D]
    dtype = widest_dtype(value, reference_points, sampling_offsets, attention_logits)
    points = reference_points.to(dtype).expand(-1, -1, len(points_per_level), -1)
    locations = []
    levels = zip(shapes.levels(), points.unbind(2), sampling_offsets.to(dtype).split(points_per_level, 3), strict=True)
    for (height, width, _), point, offsets in levels:
        point = point[:, :, None, None].expand(*offsets.shape[:-1], -1)  # [B,Q,H,P,2|4]
        usable = offsets.isfinite().all(-1, keepdim=True) & point.isfinite().all(-1, keepdim=True)
        point, offsets = point.where(usable, 0), offsets.where(usable, 0)  # so that no gradient is NaN
        if point.shape[-1] == 2:
            # As numbers or tensors, without a copy from the host; an empty level's size is not used as a divisor.
            x, y = offsets[..., 0] / _at_least_one(width), offsets[..., 1] / _at_least_one(height)
            location = point + torch.stack((x, y), -1)
        else:
            location = point[..., :2] + offsets / max(offsets.shape[3], 1) * point[..., 2:] * offset_scale
        locations.append(location.where(usable, torch.nan))
    weights = attention_logits.to(dtype).softmax(-1)
    return sample(value.to(dtype), torch.cat(locations, 3), weights, shapes, points_per_level, method).to(value.dtype)


def _at_least_one(size: Tensor | int) -> Tensor | int:
    return size.clamp(min=1) if isinstance(size, Tensor) else max(size, 1)


def _check_reference_points(points: Tensor, offsets: Tensor, num_levels: int) -> None:
    leading = (offsets.shape[0], offsets.shape[1])
    fits = points.dim() == 4 and points.shape[:2] == leading and points.shape[2] in (1, num_levels)
    if not fits or points.shape[3] not in (2, 4) or not points.is_floating_point() or points.device != offsets.device:
        raise ValueError(
            f"reference_points must be floating point [B,Q,L,2], [B,Q,L,4], [B,Q,1,2] or [B,Q,1,4] with B, Q = "
            f"{list(leading)} and L = {num_levels}, on {offsets.device}; got {points.dtype} {list(points.shape)} on "
            f"{points.device}"
        )

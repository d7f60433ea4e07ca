"""Multi-scale deformable attention: for each query and head, values sampled at a few points, weighted and summed."""

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


def multi_scale_deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]] | Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    points_per_level: Sequence[int] | None = None,
    method: Literal["default", "discrete"] = "default",
    deterministic: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Compute multi-scale deformable attention (https://arxiv.org/abs/2010.04159, equation 3).

    Differentiable in ``value``, ``sampling_locations`` and ``attention_weights``; twice only with the reference.
    Values are sampled bilinearly with zero padding: a location :math:`(x, y)` of a level of height h and width w is
    the point :math:`(x w - 0.5, y h - 0.5)` between the centers of the cells, and cells outside of the level count
    as zero. A location that is NaN contributes nothing, and its gradient and that of its weight are zero.

    Args:
        value: [B,S,H,D], the values of all levels, level by level and row by row, for H heads.
        spatial_shapes: (height, width) of each of the L levels, a sequence or an int64 tensor [L,2]. The heights
            times the widths sum to S. A tensor on a device is not read by the host; there, a cell that it gives
            beyond the S values contributes nothing.
        sampling_locations: [B,Q,H,L,P,2], x and y in fractions of the level's width and height; they may lie outside
            of [0,1]. [B,Q,H,N,2] if ``points_per_level`` is given.
        attention_weights: [B,Q,H,L,P] or [B,Q,H,N], usually a softmax over the L*P or N points.
        points_per_level: the number of points of each level, which sum to N, where they differ
            (RT-DETRv2, D-FINE). None: P for all levels.
        method: ``"default"`` samples bilinearly; ``"discrete"`` takes the cell at
            :math:`(\lfloor x w + 0.5 \rfloor, \lfloor y h + 0.5 \rfloor)`, limited to the level, as
            RT-DETRv2 (https://arxiv.org/abs/2407.17140) does. The gradient of the locations is then zero.
        deterministic: whether the gradients must be the same bits in every run. None: as
            ``torch.use_deterministic_algorithms`` says. They always are on the CPU, with any number of threads.
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
    locations, counts = flatten_points("sampling_locations", sampling_locations, value, shapes, points_per_level)
    weights = flatten_weights("attention_weights", attention_weights, locations)
    return _multi_scale_deformable_attention(
        value,
        locations,
        weights,
        shapes,
        counts,
        method,
        deterministic,
        backend=backend,
        feature="deterministic float64"
        if deterministic and widest_dtype(value, locations, weights) == torch.float64
        else None,
    )


@register_op
def _multi_scale_deformable_attention(
    value: Differentiable,  # [B,S,H,D]
    sampling_locations: Differentiable,  # [B,Q,H,N,2]
    attention_weights: Differentiable,  # [B,Q,H,N]
    shapes: SpatialShapes,
    points_per_level: list[int],
    method: str,
    deterministic: bool,
) -> Tensor:  # [B,Q,H*D]
    dtype = widest_dtype(value, sampling_locations, attention_weights)
    tensors = value.to(dtype), sampling_locations.to(dtype), attention_weights.to(dtype)
    return sample(*tensors, shapes, points_per_level, method).to(value.dtype)

"""Multi-scale deformable attention by the kernels of :mod:`.deformable_sampling`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from detr_fast.ops.deformable_sampling import SpatialShapes

from .deformable_sampling import attend, attend_backward

multi_scale_deformable_attention_lacks = ("deterministic float64",)  # fixed point has 62 bits for all digits of a sum


def multi_scale_deformable_attention(
    value: Tensor,  # [B,S,H,D]
    sampling_locations: Tensor,  # [B,Q,H,N,2]
    attention_weights: Tensor,  # [B,Q,H,N]
    shapes: SpatialShapes,
    points_per_level: list[int],
    method: str,
    deterministic: bool,
) -> Tensor:
    """Compute the attention's output [B,Q,H*D]."""
    return attend(value, None, sampling_locations, attention_weights, shapes, points_per_level, 1.0, method)


def multi_scale_deformable_attention_backward(
    grads: Sequence[Tensor],  # [B,Q,H*D]
    needed: Sequence[bool],
    value: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    shapes: SpatialShapes,
    points_per_level: list[int],
    method: str,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of value, locations and weights."""
    grad_value, _, grad_locations, grad_weights = attend_backward(
        grads[0],
        value,
        None,
        sampling_locations,
        attention_weights,
        shapes,
        points_per_level,
        1.0,
        method,
        deterministic,
        needs_points=False,
    )
    return grad_value, grad_locations, grad_weights

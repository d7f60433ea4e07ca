"""Fused deformable attention by the kernels of :mod:`.deformable_sampling`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from detr_fast.ops.deformable_sampling import SpatialShapes

from .deformable_sampling import attend, attend_backward

fused_deformable_attention_lacks = ("deterministic float64",)  # fixed point has 62 bits for all digits of a sum


def fused_deformable_attention(
    value: Tensor,  # [B,S,H,D]
    reference_points: Tensor,  # [B,Q,L|1,2|4]
    sampling_offsets: Tensor,  # [B,Q,H,N,2]
    attention_logits: Tensor,  # [B,Q,H,N]
    shapes: SpatialShapes,
    points_per_level: list[int],
    offset_scale: float,
    method: str,
    deterministic: bool,
) -> Tensor:
    """Compute the attention's output [B,Q,H*D]."""
    return attend(
        value, reference_points, sampling_offsets, attention_logits, shapes, points_per_level, offset_scale, method
    )


def fused_deformable_attention_backward(
    grads: Sequence[Tensor],  # [B,Q,H*D]
    needed: Sequence[bool],
    value: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    shapes: SpatialShapes,
    points_per_level: list[int],
    offset_scale: float,
    method: str,
    deterministic: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Compute the gradients of value, points, offsets and logits."""
    return attend_backward(
        grads[0],
        value,
        reference_points,
        sampling_offsets,
        attention_logits,
        shapes,
        points_per_level,
        offset_scale,
        method,
        deterministic,
        needs_points=needed[1],
    )

"""L1 distance of every box of one set from every box of another."""

from __future__ import annotations

from torch import Tensor

from detr_fast.ops.boxes import compute_dtype, flatten_pairs
from detr_fast.ops.custom_op import Differentiable
from detr_fast.ops.dispatch import register_op


def pairwise_box_l1(boxes1: Tensor, boxes2: Tensor, *, backend: str | None = None) -> Tensor:
    """Compute the sum of the absolute differences of the four coordinates, for every pair.

    Differentiable in both arguments. Computed in float32, or in float64 where both arguments are.

    Args:
        boxes1: [...,N,4], in any unit and format.
        boxes2: [...,M,4], in the same; leading dimensions broadcast.
        backend: a backend by name, or None for the fastest.

    Returns:
        [...,N,M], in the unit of the boxes.

    Raises:
        ValueError: a shape does not fit.
        BackendError: the backend asked for cannot run here.
    """
    flat1, flat2, leading = flatten_pairs(boxes1, boxes2)
    distance = _pairwise_box_l1(flat1, flat2, backend=backend)
    return distance.reshape(*leading, *distance.shape[-2:])


@register_op
def _pairwise_box_l1(
    boxes1: Differentiable,  # [K,N,4]
    boxes2: Differentiable,  # [K,M,4]
) -> Tensor:  # [K,N,M]
    dtype = compute_dtype(boxes1, boxes2)
    return (boxes1.to(dtype)[:, :, None] - boxes2.to(dtype)[:, None]).abs().sum(-1)

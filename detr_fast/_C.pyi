"""The C++ backends, built from csrc/: NumPy arrays in, NumPy arrays out. They are called through detr_fast.ops.

Shape letters are those of detr_fast.ops. Arrays are taken as they are, without conversion: predictions have a
contiguous last axis, targets, indices and upstream gradients are contiguous.
"""

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_Float = TypeVar("_Float", np.float32, np.float64)
_Word = TypeVar("_Word", np.int16, np.int32, np.int64)

def instruction_sets() -> list[str]:
    """The instruction sets that this machine has, widest first, as "avx512", "avx2", "portable"."""

def use_instruction_set(name: str) -> bool:
    """Use the named instruction set in every op from now on; False if this machine does not have it."""

def solve(cost: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """The row and column indices of ``scipy.optimize.linear_sum_assignment``, to minimize the cost [N,M].

    None if ``cost`` is not an aligned two-dimensional array of native float32 or float64.
    """

def solve_batch(
    cost: NDArray[_Float],
    sizes: list[int],
    groups: int,
    num_threads: int,
    with_duals: bool,
) -> tuple[
    NDArray[np.int64],
    NDArray[np.float64] | None,
    NDArray[np.float64] | None,
    list[tuple[bool, int, int, int]],
]:
    """Assign the targets of each image: cost [L,T,Q], with T the sum of the ``sizes`` [B].

    Returns:
        Queries [L,G,T], -1 where unassigned; duals of the targets [L,G,T] and of the queries [L,B,Q], or None; and
        for each problem without a solution: whether the cost holds NaN or -inf, the layer, the image, and the target
        or -1.
    """

class IouKind:
    """Which overlap match_cost computes; the names of detr_fast.MatchWeights.iou_kind."""

    giou: IouKind
    iou: IouKind
    iof: IouKind

class MatchOptions:
    """How match_cost computes; the fields of detr_fast.MatchWeights."""

    def __init__(
        self,
        *,
        focal: bool,
        corners: bool,
        cost_class: float,
        cost_bbox: float,
        cost_giou: float,
        focal_alpha: float,
        focal_gamma: float,
        focal_eps: float,
        giou_eps: float,
        box_scale: float,
        iou_kind: IouKind,
    ) -> None: ...

def match_cost(
    logits: NDArray[_Float],
    boxes: NDArray[_Float],
    labels: NDArray[np.int64],
    target_boxes: NDArray[np.float32],
    offsets: NDArray[np.int32],
    options: MatchOptions,
) -> NDArray[_Float]:
    """The matching cost [L,T,Q] of logits [L,B,Q,C], boxes [L,B,Q,4], labels [T], boxes [T,4] and offsets [B+1]."""

class ClassLoss:
    """Which class loss set_loss computes; the names of detr_fast.LossWeights.class_loss."""

    softmax: ClassLoss
    focal: ClassLoss
    varifocal: ClassLoss
    ia_bce: ClassLoss

class LossOptions:
    """How set_loss computes; the fields of detr_fast.LossWeights."""

    def __init__(
        self,
        *,
        class_loss: ClassLoss,
        no_object: float,
        focal_alpha: float,
        focal_gamma: float,
        giou_eps: float,
        box_scale: float,
    ) -> None: ...

def set_loss(
    logits: NDArray[_Float],
    boxes: NDArray[_Float],
    labels: NDArray[np.int64],
    target_boxes: NDArray[np.float32],
    offsets: NDArray[np.int32],
    query_index: NDArray[np.int64],
    options: LossOptions,
) -> NDArray[np.float64]:
    """The losses [3,L]: class, L1 and GIoU of each layer, not divided by a normalizer. query_index is [L,G,T]."""

def set_loss_backward(
    logits: NDArray[_Float],
    boxes: NDArray[_Float],
    labels: NDArray[np.int64],
    target_boxes: NDArray[np.float32],
    offsets: NDArray[np.int32],
    query_index: NDArray[np.int64],
    options: LossOptions,
    upstream: NDArray[np.float64],
) -> tuple[NDArray[_Float], NDArray[_Float]]:
    """The gradients [L,B,Q,C] and [L,B,Q,4] of the sum of upstream [3,L] times the losses."""

def multi_scale_deformable_attention(
    value: NDArray[_Float],
    locations: NDArray[_Float],
    weights: NDArray[_Float],
    shapes: list[int],
    points_per_level: list[int],
    discrete: bool,
    num_threads: int,
    output: NDArray[_Float],
) -> None:
    """Write the output [B,Q,H*D] of value [B,S,H,D] at locations [B,Q,H,N,2] with weights [B,Q,H,N].

    ``shapes`` are the height and the width of each level in turn. All arrays are contiguous.
    """

def multi_scale_deformable_attention_backward(
    value: NDArray[_Float],
    locations: NDArray[_Float],
    weights: NDArray[_Float],
    shapes: list[int],
    points_per_level: list[int],
    discrete: bool,
    num_threads: int,
    grad_output: NDArray[_Float],
    grad_value: NDArray[_Float],
    grad_locations: NDArray[_Float],
    grad_weights: NDArray[_Float],
) -> None:
    """Write the gradients of value, locations and weights."""

def fused_deformable_attention(
    value: NDArray[_Float],
    points: NDArray[_Float],
    offsets: NDArray[_Float],
    logits: NDArray[_Float],
    shapes: list[int],
    points_per_level: list[int],
    offset_scale: float,
    discrete: bool,
    num_threads: int,
    output: NDArray[_Float],
) -> None:
    """Write the output [B,Q,H*D] at offsets [B,Q,H,N,2] from points [B,Q,1|L,2|4], weighted by logits [B,Q,H,N]."""

def fused_deformable_attention_backward(
    value: NDArray[_Float],
    points: NDArray[_Float],
    offsets: NDArray[_Float],
    logits: NDArray[_Float],
    shapes: list[int],
    points_per_level: list[int],
    offset_scale: float,
    discrete: bool,
    num_threads: int,
    grad_output: NDArray[_Float],
    grad_value: NDArray[_Float],
    grad_points: NDArray[_Float] | None,
    grad_offsets: NDArray[_Float],
    grad_logits: NDArray[_Float],
) -> None:
    """Write the gradients of value, points, offsets and logits; those of the points only where they are wanted."""

def normalize_and_pad(
    pixels: NDArray[np.uint8],
    layout: NDArray[np.int64],
    table: NDArray[_Word],
    channels_last: bool,
    num_threads: int,
    batch: NDArray[_Word],
    mask: NDArray[np.bool_],
) -> None:
    """Write the batch [B,3,H,W], or [B,H,W,3] with channels last, and the mask [B,H,W] of packed images.

    ``layout`` [B,4] has the first byte in pixels [N], height, width and whether mirrored of each image; ``table``
    [3,256] has the value of each level of a channel, as integers of the size of the numbers.
    """

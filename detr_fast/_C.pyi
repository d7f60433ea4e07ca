from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

@overload
def solve(cost: NDArray[np.float32]) -> tuple[Indices, Indices]: ...
@overload
def solve(cost: NDArray[np.float64]) -> tuple[Indices, Indices]: ...
@overload
def solve_batch(cost: NDArray[np.float32], sizes: Indices, groups: int) -> Indices: ...
@overload
def solve_batch(cost: NDArray[np.float64], sizes: Indices, groups: int) -> Indices: ...

class MatchOptions:
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
    ) -> None: ...

class ClassLoss:
    softmax: ClassLoss
    focal: ClassLoss
    varifocal: ClassLoss
    ia_bce: ClassLoss

class LossOptions:
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

Floats = NDArray[np.floating[Any]]

def match_cost(
    logits: Floats,
    boxes: Floats,
    labels: Indices,
    target_boxes: NDArray[np.float32],
    offsets: NDArray[np.int32],
    options: MatchOptions,
) -> Floats: ...
def set_loss(
    logits: Floats,
    boxes: Floats,
    labels: Indices,
    target_boxes: NDArray[np.float32],
    offsets: NDArray[np.int32],
    query_index: Indices,
    options: LossOptions,
) -> NDArray[np.float64]: ...
def set_loss_backward(
    logits: Floats,
    boxes: Floats,
    labels: Indices,
    target_boxes: NDArray[np.float32],
    offsets: NDArray[np.int32],
    query_index: Indices,
    options: LossOptions,
    upstream: NDArray[np.float64],
) -> tuple[Floats, Floats]: ...

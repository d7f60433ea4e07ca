"""The cost of matching each target to each query of its own image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from detr_fast.ops.backends import Column, Functions, extension, reference, triton
from detr_fast.ops.library import Op
from detr_fast.ops.pairwise_box import box_cxcywh_to_xyxy, box_iou, compute_dtype
from detr_fast.ops.targets import Targets
from detr_fast.ops.weights import MatchWeights


def match_cost(
    logits: Tensor,  # [L,B,Q,C]
    boxes: Tensor,  # [L,B,Q,4]
    targets: Targets,
    *,
    weights: MatchWeights = MatchWeights(),  # noqa: B008  (frozen)
    groups: int = 1,
    backend: str | None = None,
) -> Tensor:  # float32 [L,T,Q]
    """Weighted sum of class, L1 and GIoU cost (https://arxiv.org/abs/2005.12872, section 3.1).

    Compact: a target's row holds its costs over the queries of its own image only. Not differentiable.

    Args:
        logits: class scores of L layers, B images and Q queries. With ``class_cost="softmax"`` the last of
            the C classes is no-object; with ``"focal"`` there is none.
        boxes: predicted boxes, cxcywh in [0,1].
        targets: of the same B images, on the same device.
        weights: what each term weighs and how it is computed.
        groups: query groups in Q, group by group.
        backend: a backend by name, or None for the fastest.

    Returns:
        float32 [L,T,Q] (float64 where logits and boxes are float64).

    Raises:
        ValueError: shapes do not fit together, Q is not a multiple of ``groups``, or a label is out of range.
        BackendError: the backend asked for cannot run here.
    """
    check_predictions(logits, boxes, targets, softmax=weights.class_cost == "softmax")
    if groups < 1 or logits.shape[2] % groups:
        raise ValueError(f"{logits.shape[2]} queries cannot be divided into {groups} groups")
    return OP(logits.detach(), boxes.detach(), targets, weights, backend=backend)


def check_predictions(logits: Tensor, boxes: Tensor, targets: Targets, *, softmax: bool) -> None:
    """Raise ValueError where the shapes of predictions and targets, or the labels, do not fit."""
    if logits.dim() != 4 or boxes.shape != (*logits.shape[:3], 4):
        raise ValueError(
            f"expected logits [L,B,Q,C] and boxes [L,B,Q,4], got {list(logits.shape)} and {list(boxes.shape)}"
        )
    if logits.shape[1] != targets.num_images:
        raise ValueError(f"predictions are for {logits.shape[1]} images, targets for {targets.num_images}")
    if logits.device != targets.labels.device:
        raise ValueError(
            f"predictions are on {logits.device}, targets on {targets.labels.device}; "
            "move the targets with targets.to(device)"
        )
    targets.check_labels(logits.shape[3] - softmax)


def focal_class_cost(logits: Tensor, weights: MatchWeights) -> Tensor:
    """What the focal loss would gain if each entry were the positive: [...] to [...].

    Deformable DETR's class cost, after https://arxiv.org/abs/1708.02002.
    """
    p = logits.sigmoid()
    alpha, gamma, eps = weights.focal_alpha, weights.focal_gamma, weights.focal_eps
    if eps > 0:
        surprise, relief = -(p + eps).log(), -(1 - p + eps).log()
    else:
        surprise, relief = softplus(-logits), softplus(logits)
    return alpha * (1 - p) ** gamma * surprise - (1 - alpha) * p**gamma * relief


def match_cost_reference(logits: Tensor, boxes: Tensor, targets: Targets, weights: MatchWeights) -> Tensor:
    dtype = compute_dtype(logits, boxes)
    image = targets.image_index()  # [T]
    logits, boxes = logits.to(dtype), boxes.to(dtype)

    scores = -logits.softmax(-1) if weights.class_cost == "softmax" else focal_class_cost(logits, weights)
    cost_class = scores[:, image, :, targets.labels].movedim(1, 0)  # [T,L,Q] -> [L,T,Q]

    predicted = boxes[:, image]  # [L,T,Q,4]
    target = targets.boxes.to(dtype)[:, None]  # [T,1,4]
    predicted_corners, target_corners = box_cxcywh_to_xyxy(predicted), box_cxcywh_to_xyxy(target)
    if weights.l1_format == "cxcywh":
        cost_bbox = (predicted - target).abs().sum(-1)
    else:
        cost_bbox = (predicted_corners - target_corners).abs().sum(-1)
    scale = weights.box_scale
    giou = box_iou(predicted_corners * scale, target_corners * scale, kind="giou", eps=weights.giou_eps)

    return weights.cost_bbox * cost_bbox + weights.cost_class * cost_class - weights.cost_giou * giou


def match_cost_cpp(logits: Tensor, boxes: Tensor, targets: Targets, weights: MatchWeights) -> Tensor:
    import detr_fast._C as _C

    targets.check_labels(logits.shape[3] - (weights.class_cost == "softmax"))
    options = _C.MatchOptions(
        focal=weights.class_cost == "focal",
        corners=weights.l1_format == "xyxy",
        cost_class=weights.cost_class,
        cost_bbox=weights.cost_bbox,
        cost_giou=weights.cost_giou,
        focal_alpha=weights.focal_alpha,
        focal_gamma=weights.focal_gamma,
        focal_eps=weights.focal_eps,
        giou_eps=weights.giou_eps,
        box_scale=weights.box_scale,
    )
    dtype = compute_dtype(logits, boxes)
    return torch.from_numpy(_C.match_cost(rows_of(logits, dtype), rows_of(boxes, dtype), *arrays_of(targets), options))


def rows_of(predictions: Tensor, dtype: torch.dtype) -> np.ndarray:
    """Predictions for the extension: the last axis contiguous, the others as they are."""
    predictions = predictions.detach().to(dtype)
    return (predictions if predictions.stride(-1) == 1 else predictions.contiguous()).numpy()


def arrays_of(targets: Targets) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, boxes and offsets for the extension."""
    return targets.labels.contiguous().numpy(), targets.boxes.contiguous().numpy(), targets.offsets.numpy()


def _load_triton() -> Functions:
    from detr_fast.kernels.match_cost import match_cost

    return {"match_cost": match_cost}


COLUMN = Column(
    "match_cost",
    [
        triton(_load_triton),
        extension({"match_cost": match_cost_cpp}),
        reference({"match_cost": match_cost_reference}),
    ],
)


def _fake(logits: Tensor, boxes: Tensor, targets: Targets, weights: MatchWeights) -> Tensor:
    shape = (logits.shape[0], targets.num_targets, logits.shape[2])
    return logits.new_empty(shape, dtype=compute_dtype(logits, boxes))


OP = Op(
    COLUMN,
    "match_cost",
    {"logits": "Tensor", "boxes": "Tensor", "targets": Targets, "weights": MatchWeights},
    "Tensor",
    _fake,
)

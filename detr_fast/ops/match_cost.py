"""The cost of matching each target to each query of its own image."""

from __future__ import annotations

from torch import Tensor

from detr_fast.ops.arguments import as_integer, check_predictions
from detr_fast.ops.boxes import box_cxcywh_to_xyxy, box_iou, compute_dtype
from detr_fast.ops.class_loss import focal_class_cost
from detr_fast.ops.dispatch import register_op
from detr_fast.ops.targets import Targets
from detr_fast.ops.weights import MatchWeights, check_weights


def match_cost(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    *,
    weights: MatchWeights = MatchWeights(),  # noqa: B008  (frozen)
    groups: int = 1,
    backend: str | None = None,
) -> Tensor:
    """Compute the weighted sum of class, L1 and GIoU cost (https://arxiv.org/abs/2005.12872, section 3.1).

    ``weights.iou_kind`` replaces the GIoU by the IoU or the IoF. The result is compact: the row of a target contains
    its costs over the queries of its own image only. Not differentiable.

    Args:
        logits: [L,B,Q,C], class scores of L layers, B images and Q queries. With ``class_cost="softmax"`` the last
            of the C classes is no-object; with ``"focal"`` there is none.
        boxes: [L,B,Q,4], predicted boxes, cxcywh in [0,1].
        targets: T targets of the same B images, on the same device.
        weights: the weight of each term, and how it is computed.
        groups: number of query groups in Q, group by group.
        backend: a backend by name, or None for the fastest.

    Returns:
        float32 [L,T,Q] (float64 where logits and boxes are float64).

    Raises:
        TypeError: an argument is of another type.
        ValueError: shapes or dtypes do not fit together, Q is not a multiple of ``groups``, or a label is out of range.
        BackendError: the backend asked for cannot run here.
    """
    check_weights("weights", weights, MatchWeights)
    check_predictions(logits, boxes, targets, softmax=weights.class_cost == "softmax")
    groups = as_integer("groups", groups)
    if groups < 1 or logits.shape[2] % groups:
        raise ValueError(f"{logits.shape[2]} queries cannot be divided into {groups} groups")
    return _match_cost(logits.detach(), boxes.detach(), targets, weights, backend=backend)


@register_op
def _match_cost(
    logits: Tensor,  # [L,B,Q,C]
    boxes: Tensor,  # [L,B,Q,4]
    targets: Targets,
    weights: MatchWeights,
) -> Tensor:  # [L,T,Q]
    targets.check_label_values(logits.shape[3] - (weights.class_cost == "softmax"))
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
    overlap = box_iou(predicted_corners * scale, target_corners * scale, kind=weights.iou_kind, eps=weights.giou_eps)

    return weights.cost_bbox * cost_bbox + weights.cost_class * cost_class - weights.cost_giou * overlap

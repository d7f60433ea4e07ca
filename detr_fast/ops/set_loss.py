"""The losses of a matched set: class, L1 and GIoU, for all layers at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from detr_fast.ops.arguments import check_divisor, check_predictions, check_tensor
from detr_fast.ops.boxes import box_cxcywh_to_xyxy, box_iou, compute_dtype
from detr_fast.ops.class_loss import focal_loss, ia_bce_loss, varifocal_loss
from detr_fast.ops.custom_op import Differentiable, Scalar
from detr_fast.ops.dispatch import register_op
from detr_fast.ops.normalizers import at_least, count_boxes, count_class_weight
from detr_fast.ops.targets import Targets
from detr_fast.ops.tracing import is_tracing
from detr_fast.ops.weights import LOSSES, LossWeights, check_weights


def set_loss(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    query_index: Tensor,
    *,
    weights: LossWeights = LossWeights(),  # noqa: B008  (frozen)
    num_boxes: Tensor | float | None = None,
    class_normalizer: Tensor | float | None = None,
    backend: str | None = None,
) -> dict[str, Tensor]:
    """Compute the class, L1 and GIoU loss of each layer (https://arxiv.org/abs/2005.12872, section 3.1, appendix A.2).

    Differentiable in ``logits`` and ``boxes``. Pairs of index -1 contribute to no loss. A query is matched to at most
    one target, as :func:`batch_linear_sum_assignment` does; two targets of one query are refused like an index that is
    out of range: on the CPU by an error, in a CUDA kernel by a fault that :func:`raise_faults` raises.

    Args:
        logits: [L,B,Q,C], as in :func:`match_cost`; the last class is no-object with ``class_loss="softmax"``.
        boxes: [L,B,Q,4], predicted boxes, cxcywh in [0,1].
        targets: T targets of the same B images, on the same device.
        query_index: int64 [L,T] or [L,G,T], the query matched to each target, -1 for none, as
            :func:`batch_linear_sum_assignment` returns it. The indices of an image are distinct within a layer, over
            all groups.
        weights: how each loss is computed; the losses are returned unweighted.
        num_boxes: divisor of the box losses, and of the class losses other than cross-entropy. None: the number of
            targets or of matched pairs, as ``weights.normalizer`` says, at least 1. Distributed training passes its
            mean over the ranks. The losses are not differentiable in it.
        class_normalizer: divisor of the cross-entropy. None: the sum of its weights over all queries. The losses are
            not differentiable in it.
        backend: a backend by name, or None for the fastest.

    Returns:
        ``{"loss_ce", "loss_bbox", "loss_giou"}``, each float32 [L] (float64 where both inputs are).

    Raises:
        TypeError: an argument is of another type.
        ValueError: shapes or dtypes do not fit together; a label or an index is out of range; a query is matched to
            two targets; or a divisor requires grad.
        BackendError: the backend asked for cannot run here.
    """
    losses, _ = _run(logits, boxes, targets, query_index, weights, num_boxes, class_normalizer, backend)
    return dict(zip(LOSSES, losses.unbind(), strict=True))


def weighted_set_loss(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    query_index: Tensor,
    *,
    weights: LossWeights = LossWeights(),  # noqa: B008  (frozen)
    num_boxes: Tensor | float | None = None,
    class_normalizer: Tensor | float | None = None,
    backend: str | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the losses of :func:`set_loss` and their weighted sum over all layers, which is differentiable.

    The sum is formed by the same kernels as the losses, so that Triton takes two launches forward and one backward.

    Args:
        logits: [L,B,Q,C], as in :func:`set_loss`.
        boxes: [L,B,Q,4], as in :func:`set_loss`.
        targets: as in :func:`set_loss`.
        query_index: int64 [L,T] or [L,G,T], as in :func:`set_loss`.
        weights: how each loss is computed, and the weights of the sum.
        num_boxes: as in :func:`set_loss`.
        class_normalizer: as in :func:`set_loss`.
        backend: a backend by name, or None for the fastest.

    Returns:
        The sum, a scalar, and the losses as :func:`set_loss` returns them, without gradients.

    Raises:
        TypeError: as in :func:`set_loss`.
        ValueError: as in :func:`set_loss`.
        BackendError: the backend asked for cannot run here.
    """
    losses, total = _run(logits, boxes, targets, query_index, weights, num_boxes, class_normalizer, backend)
    return total, dict(zip(LOSSES, losses.detach().unbind(), strict=True))


def _run(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    query_index: Tensor,
    weights: LossWeights,
    num_boxes: Tensor | float | None,
    class_normalizer: Tensor | float | None,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """Compute the losses [3,L] and their weighted sum []."""
    check_weights("weights", weights, LossWeights)
    check_predictions(logits, boxes, targets, softmax=weights.class_loss == "softmax")
    check_tensor("query_index", query_index)
    if query_index.is_floating_point() or query_index.is_complex() or query_index.dtype == torch.bool:
        raise TypeError(f"query_index must be int64 indices of queries, got {query_index.dtype}")
    if query_index.dim() == 2:
        query_index = query_index[:, None]
    if query_index.dim() != 3 or (query_index.shape[0], query_index.shape[2]) != (logits.shape[0], targets.num_targets):
        raise ValueError(
            f"query_index must be [L,T] or [L,G,T] with L={logits.shape[0]} and T={targets.num_targets}, "
            f"got {list(query_index.shape)}"
        )
    check_divisor("num_boxes", num_boxes)
    check_divisor("class_normalizer", class_normalizer)
    query_index = query_index.to(torch.int64)
    num_queries, groups = logits.shape[2], query_index.shape[1]
    if num_boxes is None:
        num_boxes = at_least(count_boxes(targets, num_queries, weights, groups=groups), 1)
    if class_normalizer is None:
        class_weight = count_class_weight(targets, num_queries, weights, groups=groups)
        class_normalizer = at_least(class_weight, weights.min_class_normalizer)
    return _set_loss(logits, boxes, targets, query_index, weights, num_boxes, class_normalizer, backend=backend)


@register_op(aliases=("weighted_set_loss",))
def _set_loss(
    logits: Differentiable,  # [L,B,Q,C]
    boxes: Differentiable,  # [L,B,Q,4]
    targets: Targets,
    query_index: Tensor,  # [L,G,T]
    weights: LossWeights,
    num_boxes: Scalar,
    class_normalizer: Scalar,
) -> tuple[Tensor, Tensor]:  # the losses [3,L] and their weighted sum []
    targets.check_label_values(logits.shape[3] - (weights.class_loss == "softmax"))
    if targets.padded:  # rows that belong to no target
        row = torch.arange(targets.num_targets, device=query_index.device)
        query_index = query_index.where(row < targets.offsets[-1], -1)
    _check_query_index(query_index, targets, logits.shape[2])
    dtype = compute_dtype(logits, boxes)
    logits, boxes = logits.to(dtype), boxes.to(dtype)
    loss_bbox, loss_giou, iou = _box_losses(boxes, targets, query_index, weights)
    if weights.class_loss == "softmax":
        loss_ce = _cross_entropy(logits, targets, query_index, weights) / class_normalizer
    else:
        loss_ce = _sigmoid_loss(logits, targets, query_index, iou, weights) / num_boxes
    losses = torch.stack((loss_ce, loss_bbox / num_boxes, loss_giou / num_boxes))
    return losses, weights.weighted_sum(losses)


def _check_query_index(query_index: Tensor, targets: Targets, num_queries: int) -> None:
    """Raise ValueError where an index is out of range or given twice; indices on a device or traced are not read."""
    if is_tracing(query_index) or query_index.device.type != "cpu":
        return
    for pair in ((query_index < -1) | (query_index >= num_queries)).nonzero():
        below = int(query_index[tuple(pair)]) < 0
        reason = "below -1" if below else f"not below the number of queries, {num_queries}"
        name = _name_pair(query_index, targets, pair)
        raise ValueError(f"{name}, which is {reason}; use -1 for a target without a query")
    pairs = (query_index >= 0).nonzero()  # [N,3]
    layer, group, row = pairs.unbind(1)
    query = (layer * targets.num_images + targets.image_index()[row]) * num_queries + query_index[layer, group, row]
    order = query.argsort(stable=True)
    repeated = order[1:][query[order].diff() == 0]
    if len(repeated):
        name = _name_pair(query_index, targets, pairs[repeated.min()])
        raise ValueError(f"{name}, which another target of the image has; match a query to at most one target")


def _name_pair(query_index: Tensor, targets: Targets, pair: Tensor) -> str:
    layer, group, row = pair.tolist()
    where = f"layer {layer}, " + (f"group {group}, " if query_index.shape[1] > 1 else "")
    return f"{where}{targets.name_target(row)}: query_index is {int(query_index[layer, group, row])}"


def _cross_entropy(logits: Tensor, targets: Targets, query_index: Tensor, weights: LossWeights) -> Tensor:
    no_object = logits.shape[-1] - 1
    labels = scatter_to_queries(targets.labels, targets, query_index, logits.shape[2], fill=no_object)  # [L,B,Q]
    loss = -logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    return loss.where(labels != no_object, weights.no_object * loss).sum((1, 2))


def _sigmoid_loss(logits: Tensor, targets: Targets, query_index: Tensor, iou: Tensor, weights: LossWeights) -> Tensor:
    num_classes = logits.shape[-1]
    labels = scatter_to_queries(targets.labels, targets, query_index, logits.shape[2], fill=num_classes)
    positive = one_hot(labels, num_classes + 1)[..., :-1].bool()  # [L,B,Q,C]
    if weights.class_loss == "focal":
        return focal_loss(logits, positive, weights).sum((1, 2, 3))
    loss = varifocal_loss if weights.class_loss == "varifocal" else ia_bce_loss
    iou_of_query = scatter_to_queries(iou, targets, query_index, logits.shape[2], fill=0)
    return loss(logits, positive, iou_of_query[..., None], weights).sum((1, 2, 3))


def _box_losses(
    boxes: Tensor, targets: Targets, query_index: Tensor, weights: LossWeights
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the L1 and GIoU loss of each layer, [L], and the IoU of matched pairs, [L,G,T] without gradient."""
    layer = torch.arange(boxes.shape[0], device=boxes.device)[:, None, None]
    matched = query_index >= 0  # [L,G,T]
    predicted = boxes[layer, targets.image_index(), query_index.clamp(min=0)]  # [L,G,T,4]
    # An unmatched target takes itself, a constant, as its prediction: no loss, no gradient.
    target = targets.boxes.to(boxes.dtype).expand_as(predicted)
    predicted = predicted.where(matched[..., None], target)
    loss_bbox = (predicted - target).abs().sum((1, 2, 3))
    corners = box_cxcywh_to_xyxy(predicted) * weights.box_scale, box_cxcywh_to_xyxy(target) * weights.box_scale
    giou = box_iou(*corners, kind="giou", eps=weights.giou_eps)
    loss_giou = (1 - giou).where(matched, 0.0).sum((1, 2))
    iou = box_iou(corners[0].detach(), corners[1], kind="iou", eps=weights.giou_eps)
    return loss_bbox, loss_giou, iou


def scatter_to_queries(
    values: Tensor, targets: Targets, query_index: Tensor, num_queries: int, *, fill: int
) -> Tensor:  # [L,B,Q]
    """Scatter the values of targets, [T] or [L,G,T], to the queries they were matched to; the others get ``fill``."""
    shape = (query_index.shape[0], targets.num_images, num_queries + 1)
    # An additional column receives the values of unmatched targets.
    scattered = torch.full(shape, fill, dtype=values.dtype, device=values.device)
    layer = torch.arange(shape[0], device=values.device)[:, None, None]
    query = query_index.where(query_index >= 0, num_queries)
    scattered[layer, targets.image_index(), query] = values.expand_as(query)
    return scattered[..., :-1]

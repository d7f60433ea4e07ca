"""The losses of a matched set: class, L1 and GIoU, for all layers at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot, softplus

from detr_fast.ops.backends import Column, Functions, extension, reference, triton
from detr_fast.ops.match_cost import arrays_of, check_predictions, rows_of
from detr_fast.ops.pairwise_box import box_cxcywh_to_xyxy, box_iou, compute_dtype
from detr_fast.ops.targets import Targets
from detr_fast.ops.weights import IOU_AWARE, LossWeights


def set_loss(
    logits: Tensor,  # [L,B,Q,C]
    boxes: Tensor,  # [L,B,Q,4]
    targets: Targets,
    query_index: Tensor,  # int64 [L,T] or [L,G,T]
    *,
    weights: LossWeights = LossWeights(),  # noqa: B008  (frozen)
    num_boxes: Tensor | float | None = None,
    class_normalizer: Tensor | float | None = None,
    backend: str | None = None,
) -> dict[str, Tensor]:
    """Class, L1 and GIoU loss of each layer (https://arxiv.org/abs/2005.12872, section 3.1 and appendix A.2).

    Differentiable in ``logits`` and ``boxes``. Pairs of index -1 have no part in any loss.

    Args:
        logits: as in :func:`match_cost`; the last class is no-object with ``class_loss="softmax"``.
        boxes: predicted boxes, cxcywh in [0,1].
        targets: of the same B images, on the same device.
        query_index: the query matched to each target, -1 for none, as
            :func:`batch_linear_sum_assignment` returns it.
        weights: how each loss is computed; the losses come back before they are weighted.
        num_boxes: divisor of the box losses (and of the focal loss). None takes :func:`count_boxes`, at
            least 1; training over ranks passes its mean over the ranks.
        class_normalizer: divisor of the cross-entropy. None takes :func:`count_class_weight`.
        backend: a backend by name, or None for the fastest.

    Returns:
        ``{"loss_ce", "loss_bbox", "loss_giou"}``, each float32 [L] (float64 where both inputs are).

    Raises:
        ValueError: shapes do not fit together, or a label is out of range.
        BackendError: the backend asked for cannot run here.
    """
    check_predictions(logits, boxes, targets, softmax=weights.class_loss == "softmax")
    if query_index.dim() == 2:
        query_index = query_index[:, None]
    if query_index.dim() != 3 or (query_index.shape[0], query_index.shape[2]) != (logits.shape[0], targets.num_targets):
        raise ValueError(
            f"query_index must be [L,T] or [L,G,T] with L={logits.shape[0]} and T={targets.num_targets}, "
            f"got {list(query_index.shape)}"
        )
    num_queries, groups = logits.shape[2], query_index.shape[1]
    if num_boxes is None:
        num_boxes = max(count_boxes(targets, num_queries, weights, groups=groups), 1)
    if class_normalizer is None:
        class_weight = count_class_weight(targets, num_queries, weights, groups=groups)
        class_normalizer = max(class_weight, weights.min_class_normalizer)
    variant = weights.class_loss if weights.class_loss in IOU_AWARE else None
    run = COLUMN.select(logits.device, backend, variant)["set_loss"]
    return run(logits, boxes, targets, query_index, weights, num_boxes, class_normalizer)


def count_boxes(targets: Targets, num_queries: int, weights: LossWeights, *, groups: int = 1) -> int:
    """What ``weights.normalizer`` counts in this batch: its targets or its matched pairs, over all groups."""
    if weights.normalizer == "targets":
        return groups * targets.num_targets
    return _count_matched(targets, num_queries, groups)


def count_class_weight(targets: Targets, num_queries: int, weights: LossWeights, *, groups: int = 1) -> float:
    """Sum of the cross-entropy's weights over all queries of one layer: matched ones 1, the others no_object."""
    matched = _count_matched(targets, num_queries, groups)
    return matched + weights.no_object * (targets.num_images * num_queries - matched)


def _count_matched(targets: Targets, num_queries: int, groups: int) -> int:
    return groups * sum(min(size, num_queries // groups) for size in targets.sizes)


def scatter_to_queries(
    values: Tensor, targets: Targets, query_index: Tensor, num_queries: int, *, fill: int
) -> Tensor:  # [L,B,Q]
    """Give each query the value of the target it was matched to; values are [T], or [L,G,T] as the indices are."""
    shape = (query_index.shape[0], targets.num_images, num_queries + 1)
    # One column more than there are queries takes what was not matched.
    scattered = torch.full(shape, fill, dtype=values.dtype, device=values.device)
    layer = torch.arange(shape[0], device=values.device)[:, None, None]
    query = query_index.where(query_index >= 0, num_queries)
    scattered[layer, targets.image_index(), query] = values.expand_as(query)
    return scattered[..., :-1]


def focal_loss(logits: Tensor, positive: Tensor, weights: LossWeights) -> Tensor:
    """Sigmoid focal loss (https://arxiv.org/abs/1708.02002) of each logit; ``positive`` is its 0/1 target."""
    p = logits.sigmoid()
    ce = binary_cross_entropy_with_logits(logits, positive, reduction="none")
    p_of_truth = p * positive + (1 - p) * (1 - positive)
    alpha = weights.focal_alpha * positive + (1 - weights.focal_alpha) * (1 - positive)
    return alpha * (1 - p_of_truth) ** weights.focal_gamma * ce


def varifocal_loss(logits: Tensor, positive: Tensor, iou: Tensor, weights: LossWeights) -> Tensor:
    """Varifocal loss (https://arxiv.org/abs/2008.13367, equation 2): a positive is to score its box's IoU."""
    p = logits.sigmoid().detach()
    quality = positive * iou
    weight = quality + weights.focal_alpha * p**weights.focal_gamma * (1 - positive)
    return weight * binary_cross_entropy_with_logits(logits, quality, reduction="none")


def ia_bce_loss(logits: Tensor, positive: Tensor, iou: Tensor, weights: LossWeights) -> Tensor:
    """IoU-aware cross-entropy (https://arxiv.org/abs/2304.07527): a positive is to score a blend of score and IoU."""
    p = logits.sigmoid()
    alpha = weights.focal_alpha
    quality = (p**alpha * iou ** (1 - alpha)).clamp(min=0.01).detach()
    ce_of_positive = binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return torch.where(positive > 0, ce_of_positive, p**weights.focal_gamma * softplus(logits))


def set_loss_reference(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    query_index: Tensor,  # [L,G,T]
    weights: LossWeights,
    num_boxes: Tensor | float,
    class_normalizer: Tensor | float,
) -> dict[str, Tensor]:
    dtype = compute_dtype(logits, boxes)
    logits, boxes = logits.to(dtype), boxes.to(dtype)
    loss_bbox, loss_giou, iou = _box_losses(boxes, targets, query_index, weights)
    if weights.class_loss == "softmax":
        loss_ce = _cross_entropy(logits, targets, query_index, weights) / class_normalizer
    else:
        loss_ce = _sigmoid_loss(logits, targets, query_index, iou, weights) / num_boxes
    return {"loss_ce": loss_ce, "loss_bbox": loss_bbox / num_boxes, "loss_giou": loss_giou / num_boxes}


def _cross_entropy(logits: Tensor, targets: Targets, query_index: Tensor, weights: LossWeights) -> Tensor:
    no_object = logits.shape[-1] - 1
    labels = scatter_to_queries(targets.labels, targets, query_index, logits.shape[2], fill=no_object)  # [L,B,Q]
    loss = -logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    return loss.where(labels != no_object, weights.no_object * loss).sum((1, 2))


def _sigmoid_loss(logits: Tensor, targets: Targets, query_index: Tensor, iou: Tensor, weights: LossWeights) -> Tensor:
    num_classes = logits.shape[-1]
    labels = scatter_to_queries(targets.labels, targets, query_index, logits.shape[2], fill=num_classes)
    positive = one_hot(labels, num_classes + 1)[..., :-1].to(logits.dtype)  # [L,B,Q,C]
    if weights.class_loss == "focal":
        return focal_loss(logits, positive, weights).sum((1, 2, 3))
    loss = varifocal_loss if weights.class_loss == "varifocal" else ia_bce_loss
    iou_of_query = scatter_to_queries(iou, targets, query_index, logits.shape[2], fill=0)
    return loss(logits, positive, iou_of_query[..., None], weights).sum((1, 2, 3))


def _box_losses(
    boxes: Tensor, targets: Targets, query_index: Tensor, weights: LossWeights
) -> tuple[Tensor, Tensor, Tensor]:
    """L1 and GIoU loss of each layer, [L], and the matched pairs' IoU, [L,G,T] without gradient."""
    layer = torch.arange(boxes.shape[0], device=boxes.device)[:, None, None]
    matched = query_index >= 0  # [L,G,T]
    predicted = boxes[layer, targets.image_index(), query_index.clamp(min=0)]  # [L,G,T,4]
    # A pair that is not there becomes a target matched to itself by a constant: no loss, no gradient.
    target = targets.boxes.to(boxes.dtype).expand_as(predicted)
    predicted = predicted.where(matched[..., None], target)
    loss_bbox = (predicted - target).abs().sum((1, 2, 3))
    corners = box_cxcywh_to_xyxy(predicted) * weights.box_scale, box_cxcywh_to_xyxy(target) * weights.box_scale
    giou = box_iou(*corners, kind="giou", eps=weights.giou_eps)
    loss_giou = (1 - giou).where(matched, 0.0).sum((1, 2))
    iou = box_iou(corners[0].detach(), corners[1], kind="iou", eps=weights.giou_eps)
    return loss_bbox, loss_giou, iou


def set_loss_cpp(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    query_index: Tensor,  # [L,G,T]
    weights: LossWeights,
    num_boxes: Tensor | float,
    class_normalizer: Tensor | float,
) -> dict[str, Tensor]:
    import detr_fast._C as _C

    options = _C.LossOptions(
        class_loss=getattr(_C.ClassLoss, weights.class_loss),
        no_object=weights.no_object,
        focal_alpha=weights.focal_alpha,
        focal_gamma=weights.focal_gamma,
        giou_eps=weights.giou_eps,
        box_scale=weights.box_scale,
    )
    sums: Tensor = _SetLossSums.apply(logits, boxes, targets, query_index, options)  # [3,L]
    loss_ce, loss_bbox, loss_giou = sums.unbind()
    divisor = class_normalizer if weights.class_loss == "softmax" else num_boxes
    return {"loss_ce": loss_ce / divisor, "loss_bbox": loss_bbox / num_boxes, "loss_giou": loss_giou / num_boxes}


class _SetLossSums(torch.autograd.Function):
    """Class, L1 and GIoU loss of each layer before they are divided: [3,L]; keeps nothing but its inputs."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, boxes: Tensor, targets: Targets, query_index: Tensor, options: Any) -> Tensor:
        import detr_fast._C as _C

        ctx.save_for_backward(logits, boxes)
        dtype = compute_dtype(logits, boxes)
        ctx.rest = *arrays_of(targets), query_index.contiguous().numpy(), options
        return torch.from_numpy(_C.set_loss(rows_of(logits, dtype), rows_of(boxes, dtype), *ctx.rest)).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        import detr_fast._C as _C

        logits, boxes = ctx.saved_tensors
        dtype = compute_dtype(logits, boxes)
        weights = upstream.to(torch.float64).contiguous().numpy()
        inputs: tuple[Any, ...] = (rows_of(logits, dtype), rows_of(boxes, dtype), *ctx.rest, weights)
        gradients = _C.set_loss_backward(*inputs)
        of_logits, of_boxes = (torch.from_numpy(gradient) for gradient in gradients)
        return of_logits.to(logits.dtype), of_boxes.to(boxes.dtype), None, None, None


def _load_triton() -> Functions:
    from detr_fast.kernels.set_loss import set_loss_triton

    return {"set_loss": set_loss_triton}


COLUMN = Column(
    "set_loss",
    [
        triton(_load_triton),
        extension({"set_loss": set_loss_cpp}, variants=IOU_AWARE),
        reference({"set_loss": set_loss_reference}, variants=IOU_AWARE),
    ],
)

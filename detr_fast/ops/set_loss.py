"""The losses of a matched set: class, L1 and GIoU, for all layers at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from detr_fast.ops.backends import Column, Functions, extension, reference, triton
from detr_fast.ops.class_loss import focal_loss, ia_bce_loss, varifocal_loss
from detr_fast.ops.library import NUMBER, Op
from detr_fast.ops.match_cost import arrays_of, check_predictions, rows_of
from detr_fast.ops.normalizers import at_least, count_boxes, count_class_weight
from detr_fast.ops.pairwise_box import box_cxcywh_to_xyxy, box_iou, compute_dtype
from detr_fast.ops.targets import Targets
from detr_fast.ops.weights import LossWeights

LOSSES = ("loss_ce", "loss_bbox", "loss_giou")


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
    losses, _ = _run(logits, boxes, targets, query_index, weights, num_boxes, class_normalizer, backend)
    return dict(zip(LOSSES, losses.unbind(), strict=True))


def weighted_set_loss(
    logits: Tensor,  # [L,B,Q,C]
    boxes: Tensor,  # [L,B,Q,4]
    targets: Targets,
    query_index: Tensor,  # int64 [L,T] or [L,G,T]
    *,
    weights: LossWeights = LossWeights(),  # noqa: B008  (frozen)
    num_boxes: Tensor | float | None = None,
    class_normalizer: Tensor | float | None = None,
    backend: str | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """What to call backward on: the losses of :func:`set_loss`, weighted and added up over all layers.

    Arguments and errors are those of :func:`set_loss`. The sum is formed where the losses are, so that Triton takes
    two launches forward and one backward.

    Returns:
        The total, a scalar, and the losses as :func:`set_loss` returns them, without gradients.
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
    """The losses [3,L] and their weighted sum []."""
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
        num_boxes = at_least(count_boxes(targets, num_queries, weights, groups=groups), 1)
    if class_normalizer is None:
        class_weight = count_class_weight(targets, num_queries, weights, groups=groups)
        class_normalizer = at_least(class_weight, weights.min_class_normalizer)
    return OP(logits, boxes, targets, query_index, weights, num_boxes, class_normalizer, backend=backend)


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


def set_loss_reference(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    query_index: Tensor,  # [L,G,T]
    weights: LossWeights,
    num_boxes: Tensor | float,
    class_normalizer: Tensor | float,
) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(logits, boxes)
    logits, boxes = logits.to(dtype), boxes.to(dtype)
    loss_bbox, loss_giou, iou = _box_losses(boxes, targets, query_index, weights)
    if weights.class_loss == "softmax":
        loss_ce = _cross_entropy(logits, targets, query_index, weights) / class_normalizer
    else:
        loss_ce = _sigmoid_loss(logits, targets, query_index, iou, weights) / num_boxes
    losses = torch.stack((loss_ce, loss_bbox / num_boxes, loss_giou / num_boxes))
    return losses, _weighted_sum(losses, weights)


def _weighted_sum(losses: Tensor, weights: LossWeights) -> Tensor:
    return sum(
        (getattr(weights, name) * loss.sum() for name, loss in zip(LOSSES, losses, strict=True)), losses.new_zeros(())
    )


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
) -> tuple[Tensor, Tensor]:
    import detr_fast._C as _C

    dtype = compute_dtype(logits, boxes)
    sums = torch.from_numpy(_C.set_loss(*_arguments_of_cpp(logits, boxes, targets, query_index, weights))).to(dtype)
    losses = sums / _divisors(weights, num_boxes, class_normalizer, dtype)
    return losses, _weighted_sum(losses, weights)


def set_loss_cpp_backward(
    grads: Sequence[Tensor | None],  # of the losses [3,L] and of their weighted sum []
    needed: Sequence[bool],
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    query_index: Tensor,  # [L,G,T]
    weights: LossWeights,
    num_boxes: Tensor | float,
    class_normalizer: Tensor | float,
) -> tuple[Tensor, Tensor]:
    import detr_fast._C as _C

    grad_losses, grad_total = grads
    upstream = torch.zeros(3, logits.shape[0], dtype=torch.float64) if grad_losses is None else grad_losses.double()
    if grad_total is not None:
        upstream = (
            upstream + torch.tensor([[getattr(weights, name)] for name in LOSSES], dtype=torch.float64) * grad_total
        )
    upstream = upstream / _divisors(weights, num_boxes, class_normalizer, torch.float64)
    arguments = _arguments_of_cpp(logits, boxes, targets, query_index, weights)
    of_logits, of_boxes = (torch.from_numpy(x) for x in _C.set_loss_backward(*arguments, upstream.contiguous().numpy()))
    return of_logits.to(logits.dtype), of_boxes.to(boxes.dtype)


def _arguments_of_cpp(
    logits: Tensor, boxes: Tensor, targets: Targets, query_index: Tensor, weights: LossWeights
) -> tuple[Any, ...]:
    import detr_fast._C as _C

    targets.check_labels(logits.shape[3] - (weights.class_loss == "softmax"))
    options = _C.LossOptions(
        class_loss=getattr(_C.ClassLoss, weights.class_loss),
        no_object=weights.no_object,
        focal_alpha=weights.focal_alpha,
        focal_gamma=weights.focal_gamma,
        giou_eps=weights.giou_eps,
        box_scale=weights.box_scale,
    )
    dtype = compute_dtype(logits, boxes)
    return rows_of(logits, dtype), rows_of(boxes, dtype), *arrays_of(targets), query_index.contiguous().numpy(), options


def _divisors(
    weights: LossWeights, num_boxes: Tensor | float, class_normalizer: Tensor | float, dtype: torch.dtype
) -> Tensor:  # [3,1]
    classes = class_normalizer if weights.class_loss == "softmax" else num_boxes
    return torch.tensor([[float(classes)], [float(num_boxes)], [float(num_boxes)]], dtype=dtype)


def _load_triton() -> Functions:
    from detr_fast.kernels.set_loss import set_loss, set_loss_backward

    return {"set_loss": set_loss, "set_loss_backward": set_loss_backward}


COLUMN = Column(
    "set_loss",
    [
        triton(_load_triton),
        extension({"set_loss": set_loss_cpp, "set_loss_backward": set_loss_cpp_backward}),
        reference({"set_loss": set_loss_reference}),
    ],
)


def _fake(logits: Tensor, boxes: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(logits, boxes)
    return logits.new_empty((3, logits.shape[0]), dtype=dtype), logits.new_empty((), dtype=dtype)


OP = Op(
    COLUMN,
    "set_loss",
    {
        "logits": "Tensor",
        "boxes": "Tensor",
        "targets": Targets,
        "query_index": "Tensor",
        "weights": LossWeights,
        "num_boxes": NUMBER,
        "class_normalizer": NUMBER,
    },
    "(Tensor, Tensor)",
    _fake,
    differentiable=2,
)

"""Matching and losses as DETR's reference code computes them, in plain PyTorch and SciPy, for comparison.

The idiom is that of facebookresearch/detr: every layer by itself, each query of the batch against each target of the
batch, one copy of the cost to the host, SciPy for each image, and index tensors for the losses. Left out are
the assertions on boxes, for which the reference code synchronizes, and the errors that it logs.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from detr_fast import LossWeights, MatchWeights, Targets, ops

MATCH, LOSS = MatchWeights.detr(), LossWeights.detr()

Pairs = list[tuple[Tensor, Tensor]]  # for each image the matched queries and targets


def matching_costs(logits: Tensor, boxes: Tensor, targets: Targets) -> list[Tensor]:
    """Return a cost [B*Q,T] for each layer."""

    def one(logits: Tensor, boxes: Tensor) -> Tensor:
        probability, predicted = logits.flatten(0, 1).softmax(-1), boxes.flatten(0, 1)
        return (
            MATCH.cost_bbox * torch.cdist(predicted, targets.boxes, p=1)
            - MATCH.cost_class * probability[:, targets.labels]
            - MATCH.cost_giou * _giou(predicted, targets.boxes)
        )

    return [one(*layer) for layer in zip(logits, boxes, strict=True)]


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, targets: Targets) -> list[Pairs]:
    """Return the matched pairs of each layer."""
    blocks = [cost.unflatten(0, (targets.num_images, -1)).cpu() for cost in matching_costs(logits, boxes, targets)]
    return [assign([own[b] for b, own in enumerate(layer.split(targets.sizes, -1))]) for layer in blocks]


def assign(costs: Iterable[Tensor]) -> Pairs:
    """Solve the problems of a layer, a cost [Q,t] for each image."""
    from scipy.optimize import linear_sum_assignment

    pairs = [linear_sum_assignment(cost) for cost in costs]
    return [(torch.as_tensor(q, dtype=torch.int64), torch.as_tensor(t, dtype=torch.int64)) for q, t in pairs]


def total_loss(logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
    """Match, and sum the weighted losses of all layers."""
    class_weight = logits.new_ones(logits.shape[-1])
    class_weight[-1] = LOSS.no_object
    num_boxes = max(targets.num_targets, 1)
    layers = zip(logits, boxes, match(logits, boxes, targets), strict=True)
    return torch.stack([_layer_loss(x, y, targets, pairs, class_weight, num_boxes) for x, y, pairs in layers]).sum()


def _layer_loss(
    logits: Tensor, boxes: Tensor, targets: Targets, pairs: Pairs, class_weight: Tensor, num_boxes: int
) -> Tensor:
    device = logits.device
    image = torch.cat([torch.full_like(query, b) for b, (query, _) in enumerate(pairs)]).to(device)
    query = torch.cat([query for query, _ in pairs]).to(device)
    labels, truth = targets.labels.split(targets.sizes), targets.boxes.split(targets.sizes)
    matched = [target.to(device) for _, target in pairs]
    classes = torch.full(logits.shape[:2], logits.shape[-1] - 1, dtype=torch.int64, device=device)
    classes[image, query] = torch.cat([of_image[t] for of_image, t in zip(labels, matched, strict=True)])
    predicted = boxes[image, query]
    target_boxes = torch.cat([of_image[t] for of_image, t in zip(truth, matched, strict=True)])
    return (
        LOSS.loss_ce * F.cross_entropy(logits.transpose(1, 2), classes, class_weight)
        + LOSS.loss_bbox * F.l1_loss(predicted, target_boxes, reduction="none").sum() / num_boxes
        + LOSS.loss_giou * (1 - torch.diag(_giou(predicted, target_boxes))).sum() / num_boxes
    )


def _giou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    return ops.pairwise_box_iou(boxes1, boxes2, kind="giou", box_format="cxcywh", backend="reference")

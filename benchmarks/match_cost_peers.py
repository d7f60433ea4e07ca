"""The matching cost as others compute it, for the same predictions as ours: a list of each layer's matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.peers import import_peer
from detr_fast import MatchWeights, Targets, ops

Costs = Callable[[], list[Tensor]]


def original(logits: Tensor, boxes: Tensor, targets: Targets) -> Costs:
    """The original's: for each layer [B*Q,T], every image's queries against all targets of the batch.

    It is spared its assertions on the boxes, for which it waits for the device.
    """
    weights = MatchWeights.detr()

    def one(logits: Tensor, boxes: Tensor) -> Tensor:
        probability, predicted = logits.flatten(0, 1).softmax(-1), boxes.flatten(0, 1)
        giou = ops.pairwise_box_iou(
            predicted, targets.boxes, kind="giou", box_format="cxcywh", backend="reference"
        )  # plain PyTorch
        return (
            weights.cost_bbox * torch.cdist(predicted, targets.boxes, p=1)
            - weights.cost_class * probability[:, targets.labels]
            - weights.cost_giou * giou
        )

    return lambda: [one(*layer) for layer in zip(logits, boxes, strict=True)]


def own_images(costs: list[Tensor], targets: Targets) -> Tensor:
    """Of the original's matrices what is kept, each target's costs over its own image's queries: [L,T,Q]."""
    blocks = torch.stack(costs).unflatten(1, (targets.num_images, -1))  # [L,B,Q,T]
    return blocks.transpose(2, 3)[:, targets.image_index(), torch.arange(targets.num_targets, device=blocks.device)]


def rfdetr(logits: Tensor, boxes: Tensor, targets: Targets) -> tuple[MatchWeights, Costs]:
    """RF-DETR's: for each layer [Q,T], all layers stacked where it stacks them; and its weights, for ours."""
    module = import_peer("rfdetr", "rfdetr.models.matcher")
    matcher = module.HungarianMatcher(cost_class=2, cost_bbox=5, cost_giou=2, focal_alpha=0.25)
    truth = [
        {"labels": labels, "boxes": of_image}
        for labels, of_image in zip(
            targets.labels.split(targets.sizes), targets.boxes.split(targets.sizes), strict=True
        )
    ]
    layers = [{"pred_logits": x, "pred_boxes": y} for x, y in zip(logits, boxes, strict=True)]
    elements = logits[..., 0].numel() * max(targets.sizes)
    if elements <= module._STACKED_COST_ELEMENT_LIMIT:
        costs = lambda: matcher._compute_stacked_compact_cost_matrices(layers, truth)  # noqa: E731
    else:
        costs = lambda: [  # noqa: E731
            matcher._compute_compact_detection_cost_matrix(layer, truth, clamp_target_labels=True) for layer in layers
        ]
    return MatchWeights(2, 5, 2, class_cost="focal", focal_alpha=0.25, focal_eps=0.0), costs

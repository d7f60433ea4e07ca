"""Bipartite matching for the criteria of transformers: all layers of a step in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from detr_fast import ops
from detr_fast.integrations.pairs import Pairs, to_pairs
from detr_fast.ops.match_cost import focal_class_cost
from detr_fast.ops.targets import Targets
from detr_fast.ops.weights import MatchWeights

Output = Mapping[str, Any]  # one layer's "logits" [B,Q,C], "pred_boxes" [B,Q,4] and whatever else a family has

FOCAL_MATCHERS = ("DeformableDetrHungarianMatcher", "LwDetrHungarianMatcher", "GroundingDinoHungarianMatcher")
MATCHERS = ("HungarianMatcher", "RTDetrHungarianMatcher", *FOCAL_MATCHERS)


def pack_labels(labels: Sequence[Mapping[str, Tensor]]) -> Targets:
    """The targets of a batch, from what transformers calls its labels."""
    return Targets.from_list([{"labels": image["class_labels"], "boxes": image["boxes"]} for image in labels])


def match_weights(matcher: nn.Module) -> MatchWeights:
    """The costs of one of transformers' matchers, by its attributes."""
    costs: dict[str, Any] = {
        "cost_class": matcher.class_cost,
        "cost_bbox": matcher.bbox_cost,
        "cost_giou": matcher.giou_cost,
    }
    name = type(matcher).__name__
    if name == "RTDetrHungarianMatcher" and matcher.use_focal_loss:
        costs |= {"class_cost": "focal", "focal_alpha": matcher.alpha, "focal_gamma": matcher.gamma}
    elif name in FOCAL_MATCHERS:
        costs["class_cost"] = "focal"
    return MatchWeights(**costs)


@torch.no_grad()
def match(
    logits: Tensor,  # [L,B,Q,C]
    boxes: Tensor,  # [L,B,Q,4]
    targets: Targets,
    weights: MatchWeights,
    groups: int,
    label_maps: Sequence[Tensor] | None = None,  # for each image [classes, C]: the logits that spell each class
) -> Tensor:
    """The query of each target, int64 [L,G,T]; -1 for none.

    As in transformers a cost that is not finite loses against all that are.

    Raises:
        ValueError: a box is not finite or has a negative side.
    """
    if boxes.device.type == "cpu" and not (boxes[..., 2:] >= 0).all():
        raise ValueError(
            "the model predicts boxes that are not finite or have a negative side; has training diverged? "
            "A smaller learning rate, gradient clipping or float32 in place of float16 may help"
        )
    if label_maps is None:
        cost = ops.match_cost(logits, boxes, targets, weights=weights, groups=groups)
    else:
        cost = _cost_of_phrases(logits, boxes, targets, weights, label_maps)
    worst = torch.finfo(cost.dtype).max
    cost.nan_to_num_(nan=worst, posinf=worst, neginf=worst)
    index = ops.batch_linear_sum_assignment(cost, targets, groups=groups)
    return index.view(len(logits), groups, targets.num_targets)


def _cost_of_phrases(
    logits: Tensor, boxes: Tensor, targets: Targets, weights: MatchWeights, label_maps: Sequence[Tensor]
) -> Tensor:
    """Costs [L,T,Q] where a class is a phrase: the mean of the focal costs of its tokens."""
    one_class = boxes.new_zeros(()).expand(*boxes.shape[:3], 1)
    unlabelled = Targets(torch.zeros_like(targets.labels), targets.boxes, targets.sizes, targets.offsets)
    cost = ops.match_cost(one_class, boxes, unlabelled, weights=replace(weights, cost_class=0.0))
    of_token = focal_class_cost(logits, weights)  # [L,B,Q,C]
    of_phrase = []
    for image, labels in enumerate(targets.labels.split(targets.sizes)):
        tokens = label_maps[image][labels].to(of_token.dtype)  # [t,C]
        of_phrase.append(tokens / tokens.sum(-1, keepdim=True) @ of_token[:, image].mT)  # [L,t,Q]
    return cost.add_(torch.cat(of_phrase, 1), alpha=weights.cost_class)


class BatchedMatcher(nn.Module):
    """Takes the place of a matcher in a criterion of transformers.

    The criterion asks for one layer after another; :meth:`prepare`, called before, answers for all of them at once.

    Args:
        matcher: the one whose place it takes.
    """

    def __init__(self, matcher: nn.Module) -> None:
        super().__init__()
        self.weights = match_weights(matcher)
        self.matched: dict[int, Tensor] = {}  # [G,T] by the identity of a layer's logits

    def prepare(self, layers: Sequence[Output], targets: Targets, groups: int) -> list[Tensor]:
        """Match all layers, those of one shape together; each as [G,T]."""
        self.targets = targets
        self.matched = {}
        for alike in group_by_shape(layers):
            logits = torch.stack([layer["logits"].detach() for layer in alike])
            boxes = torch.stack([layer["pred_boxes"].detach() for layer in alike])
            indices = match(logits, boxes, targets, self.weights, groups, alike[0].get("label_maps"))
            self.matched |= {id(layer["logits"]): index for layer, index in zip(alike, indices, strict=True)}
        return [self.matched[id(layer["logits"])] for layer in layers]

    def forward(self, outputs: Output, targets: Sequence[Mapping[str, Tensor]], group_detr: int = 1) -> Pairs:
        """What the matcher of transformers returns for one layer."""
        if id(outputs["logits"]) not in self.matched:
            self.prepare([outputs], pack_labels(targets), group_detr)
        return to_pairs(self.matched[id(outputs["logits"])], self.targets, outputs["logits"].shape[1])


def group_by_shape(layers: Sequence[Output]) -> list[list[Output]]:
    """Layers whose logits can be stacked, in the order given."""
    groups: dict[torch.Size, list[Output]] = {}
    for layer in layers:
        groups.setdefault(layer["logits"].shape, []).append(layer)
    return list(groups.values())

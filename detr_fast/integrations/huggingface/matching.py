"""Bipartite matching for the criteria of transformers, with one call for all layers of a step."""

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

Output = Mapping[str, Any]  # "logits" [B,Q,C] and "pred_boxes" [B,Q,4] of a layer, and other entries of the family

FOCAL_MATCHERS = ("DeformableDetrHungarianMatcher", "LwDetrHungarianMatcher", "GroundingDinoHungarianMatcher")
MATCHERS = ("HungarianMatcher", "RTDetrHungarianMatcher", *FOCAL_MATCHERS)


def pack_labels(labels: Sequence[Mapping[str, Tensor]]) -> Targets:
    """Pack the labels of transformers: ``class_labels`` [t] and ``boxes`` [t,4], cxcywh in [0,1], of each image."""
    return Targets.from_list([{"labels": image["class_labels"], "boxes": image["boxes"]} for image in labels])


def match_weights(matcher: nn.Module) -> MatchWeights:
    """Convert the attributes of a matcher of transformers to :class:`MatchWeights`."""
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
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    weights: MatchWeights,
    groups: int,
    label_maps: Sequence[Tensor] | None = None,
) -> Tensor:
    """Match each target to a query of its image.

    As in transformers, a cost that is not finite is replaced by the largest finite number.

    Args:
        logits: Class logits [L,B,Q,C].
        boxes: Predicted boxes [L,B,Q,4], cxcywh in [0,1].
        targets: Targets of the B images.
        weights: Costs of the matching.
        groups: Number of query groups G.
        label_maps: For each image the tokens of each class, [classes,C]; None if a logit stands for a class.

    Returns:
        The query of each target, int64 [L,G,T], -1 where it is unmatched.

    Raises:
        ValueError: A box on a CPU is not finite or has a negative side.
    """
    if boxes.device.type == "cpu" and not (boxes[..., 2:] >= 0).all():
        raise ValueError(
            "the model predicts boxes that are not finite or have a negative side; has training diverged? "
            "A lower learning rate, gradient clipping or float32 instead of float16 may help"
        )
    if label_maps is None:
        cost = ops.match_cost(logits, boxes, targets, weights=weights, groups=groups)
    else:
        cost = _cost_of_phrases(logits, boxes, targets, weights, label_maps)
    largest = torch.finfo(cost.dtype).max
    cost.nan_to_num_(nan=largest, posinf=largest, neginf=largest)
    index = ops.batch_linear_sum_assignment(cost, targets, groups=groups)
    return index.view(len(logits), groups, targets.num_targets)


def _cost_of_phrases(
    logits: Tensor, boxes: Tensor, targets: Targets, weights: MatchWeights, label_maps: Sequence[Tensor]
) -> Tensor:
    """Compute the costs [L,T,Q] of phrases; the class cost of a phrase is the mean focal cost of its tokens."""
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
    """Replaces the matcher of a criterion of transformers.

    The criterion calls its matcher for one layer at a time; :meth:`prepare` matches all layers before.

    Args:
        matcher: The matcher of transformers.
    """

    def __init__(self, matcher: nn.Module) -> None:
        super().__init__()
        self.weights = match_weights(matcher)
        self.matched: dict[int, Tensor] = {}  # int64 [G,T] by the identity of the logits of a layer

    def prepare(self, layers: Sequence[Output], targets: Targets, groups: int) -> list[Tensor]:
        """Match all layers, with one call for all layers of the same shape.

        Args:
            layers: The outputs of the layers.
            targets: The targets.
            groups: Number of query groups G.

        Returns:
            The query of each target, int64 [G,T], of each layer.
        """
        self.targets = targets
        self.matched = {}
        for stacked in group_by_shape(layers):
            logits = torch.stack([layer["logits"].detach() for layer in stacked])
            boxes = torch.stack([layer["pred_boxes"].detach() for layer in stacked])
            indices = match(logits, boxes, targets, self.weights, groups, stacked[0].get("label_maps"))
            self.matched |= {id(layer["logits"]): index for layer, index in zip(stacked, indices, strict=True)}
        return [self.matched[id(layer["logits"])] for layer in layers]

    def forward(self, outputs: Output, targets: Sequence[Mapping[str, Tensor]], group_detr: int = 1) -> Pairs:
        """Return the pairs of one layer, as the matcher of transformers does."""
        if id(outputs["logits"]) not in self.matched:
            self.prepare([outputs], pack_labels(targets), group_detr)
        return to_pairs(self.matched[id(outputs["logits"])], self.targets, outputs["logits"].shape[1])


def group_by_shape(layers: Sequence[Output]) -> list[list[Output]]:
    """Group layers whose logits can be stacked, in the given order."""
    groups: dict[torch.Size, list[Output]] = {}
    for layer in layers:
        groups.setdefault(layer["logits"].shape, []).append(layer)
    return list(groups.values())

"""The criterion of RF-DETR."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from rfdetr.models.criterion import SetCriterion
from rfdetr.models.matcher import HungarianMatcher
from torch import Tensor

from detr_fast import ops
from detr_fast.integrations.evidence import Finding, check_close, check_parameters, evaluate, examine
from detr_fast.integrations.pairs import from_pairs
from detr_fast.integrations.rfdetr.comparisons import NUM_GROUPS, identity, random_step
from detr_fast.integrations.rfdetr.matching import FastMatcher
from detr_fast.integrations.rfdetr.outputs import (
    Output,
    detections,
    given,
    is_plain_detection,
    num_queries,
    pack_targets,
    stack_layers,
)
from detr_fast.ops.metrics import cardinality_error, class_error
from detr_fast.ops.weights import LossWeights


class FastCriterion(SetCriterion):
    """The criterion of RF-DETR, which computes the losses of all layers in one call."""

    computes_cardinality = True

    def forward(
        self, outputs: Output, targets: list[Output], num_boxes: Tensor | float | None = None
    ) -> dict[str, Tensor]:
        auxiliary = list(outputs.get("aux_outputs", ()))
        layers = [outputs, *auxiliary]
        suffixes = ["", *(f"_{i}" for i in range(len(auxiliary)))]
        if "enc_outputs" in outputs:
            layers.append(outputs["enc_outputs"])
            suffixes.append("_enc")
        supported = supports_losses(self) and is_plain_detection(layers, targets)
        packed = pack_targets(targets) if supported else None
        if packed is None:
            return super().forward(outputs, targets, *given(num_boxes))
        groups = self.group_detr if self.training else 1
        index = self.matcher.match(layers, packed, groups) if isinstance(self.matcher, FastMatcher) else None
        if index is None:
            index = torch.stack(
                [
                    from_pairs(self.matcher(layer, targets, group_detr=groups), packed, num_queries(layer), groups)
                    for layer in layers
                ]
            )
        if num_boxes is None:
            num_boxes = _count_boxes(self, outputs, targets)
        logits, boxes = stack_layers([detections(layer) for layer in layers])
        weights = LossWeights(class_loss="ia_bce", focal_alpha=self.focal_alpha)
        terms = ops.set_loss(logits, boxes, packed, index, weights=weights, num_boxes=num_boxes)
        if self.computes_cardinality:
            terms["cardinality_error"] = cardinality_error(logits, packed, softmax=False)
        else:
            counted = [self.get_loss("cardinality", layer, targets, None, num_boxes) for layer in layers]
            terms["cardinality_error"] = torch.stack([error["cardinality_error"] for error in counted])
        losses = {"class_error": class_error(logits[0], packed, index[0])}
        for name, values in terms.items():
            losses |= {name + suffix: value for suffix, value in zip(suffixes, values.unbind(), strict=True)}
        return losses


class FastCriterionWithoutCardinality(FastCriterion):
    """The criterion for releases of RF-DETR that count predictions differently."""

    computes_cardinality = False


def supports_losses(criterion: Any) -> bool:
    """Return whether ``set_loss`` computes the losses that a criterion has been set to compute."""
    return bool(criterion.ia_bce_loss) and criterion.losses == ["labels", "boxes", "cardinality"]


def _count_boxes(criterion: Any, outputs: Output, targets: Sequence[Output]) -> Tensor:
    """Return the divisor of the box losses: the number of boxes of all groups, as a mean over the ranks."""
    if hasattr(criterion, "num_boxes_for_targets"):
        return criterion.num_boxes_for_targets(outputs, targets)
    count = sum(len(image["labels"]) for image in targets)
    if not criterion.sum_group_losses and criterion.training:
        count *= criterion.group_detr
    total = outputs["pred_logits"].new_full((1,), count, dtype=torch.float32)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
        total /= dist.get_world_size()
    return total.clamp(min=1)


def find_loss(criterion: SetCriterion) -> list[Finding]:
    """Compare the losses of a criterion, from its own matches.

    Args:
        criterion: A criterion with losses that are supported.

    Returns:
        The finding about class and box losses and, unless these are left to RF-DETR, that about the cardinality error.
    """
    key = (*identity(criterion), *identity(criterion.matcher))
    compare = partial(_compare_losses, criterion, FastCriterionWithoutCardinality)
    losses = examine("the losses", compare, ("loss", *key))
    if losses.reason is not None:
        return [losses]
    compare = partial(_compare_losses, criterion, FastCriterion)
    return [losses, examine("the cardinality error", compare, ("cardinality", *key))]


def _compare_losses(criterion: SetCriterion, fast_type: type[FastCriterion]) -> None:
    check_parameters(SetCriterion.forward, ("outputs", "targets", "num_boxes"))
    host = deepcopy(criterion).cpu()
    host.group_detr = min(host.group_detr, NUM_GROUPS)
    if type(host.matcher) is FastMatcher:
        host.matcher.__class__ = HungarianMatcher
    fast = deepcopy(host)
    fast.__class__ = fast_type
    for training in (True, False):
        results = []
        for module in (fast, host):
            outputs, targets, leaves = random_step(criterion.num_classes)
            losses = module.train(training)(outputs, targets)
            # Weighted, so that errors of two losses do not cancel out.
            weighted = {name: (1 + i) * value for i, (name, value) in enumerate(sorted(losses.items()))}
            results.append(evaluate(weighted, leaves))
        check_close(*results)

"""The matcher of RF-DETR."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from rfdetr.models.matcher import HungarianMatcher
from torch import Tensor

from detr_fast import ops
from detr_fast.integrations.evidence import Finding, check_close, check_parameters, examine
from detr_fast.integrations.pairs import Pairs, to_pairs
from detr_fast.integrations.rfdetr.comparisons import NUM_GROUPS, identity, random_step
from detr_fast.integrations.rfdetr.outputs import (
    Output,
    detections,
    given,
    is_plain_detection,
    num_queries,
    pack_targets,
    stack_layers,
)
from detr_fast.ops.targets import Targets
from detr_fast.ops.weights import MatchWeights


class FastMatcher(HungarianMatcher):
    """The matcher of RF-DETR, which matches all layers in one call."""

    @torch.no_grad()
    def forward(
        self, outputs: Output, targets: list[Output], group_detr: int = 1, target_side_safety: Any = None
    ) -> Pairs:
        """Match one layer, as the matcher of RF-DETR does."""
        pairs = self._match_plain([outputs], targets, group_detr)
        return super().forward(outputs, targets, group_detr, *given(target_side_safety)) if pairs is None else pairs[0]

    @torch.no_grad()
    def _match_many(
        self, outputs_list: list[Output], targets: list[Output], group_detr: int = 1, target_side_safety: Any = None
    ) -> list[Pairs] | None:
        pairs = self._match_plain(outputs_list, targets, group_detr)
        return super()._match_many(outputs_list, targets, group_detr, target_side_safety) if pairs is None else pairs

    def _match_plain(self, outputs_list: list[Output], targets: list[Output], groups: int) -> list[Pairs] | None:
        """Return the pairs of each layer; None if RF-DETR has to match them."""
        packed = pack_targets(targets) if is_plain_detection(outputs_list, targets) else None
        index = None if packed is None else self.match(outputs_list, packed, groups)
        if packed is None or index is None:
            return None
        return [to_pairs(of_layer, packed, num_queries(outputs_list[0])) for of_layer in index]

    def match(self, outputs_list: Sequence[Output], targets: Targets, groups: int) -> Tensor | None:
        """Match all layers.

        Args:
            outputs_list: The outputs of L layers.
            targets: The targets.
            groups: Number of query groups G.

        Returns:
            The query of each target, int64 [L,G,T]; None if costs on a CPU are not finite.
        """
        weights = MatchWeights(
            self.cost_class,
            self.cost_bbox,
            self.cost_giou,
            class_cost="focal",
            focal_alpha=self.focal_alpha,
            focal_eps=0.0,
        )
        logits, boxes = stack_layers([{k: v.detach() for k, v in detections(o).items()} for o in outputs_list])
        cost = ops.match_cost(logits, boxes, targets, weights=weights, groups=groups)
        if cost.device.type == "cpu" and not cost.isfinite().all():
            return None
        largest = torch.finfo(cost.dtype).max
        cost.nan_to_num_(nan=largest, posinf=largest, neginf=largest)
        index = ops.batch_linear_sum_assignment(cost, targets, groups=groups)
        return index.view(len(logits), groups, targets.num_targets)


def find_matcher(matcher: HungarianMatcher) -> Finding:
    """Compare the matches of a matcher with those of its replacement."""
    return examine("the matching", partial(_compare_matches, matcher), ("matcher", *identity(matcher)))


def _compare_matches(matcher: HungarianMatcher) -> None:
    last = "target_side_safety"
    check_parameters(HungarianMatcher.forward, ("outputs", "targets", "group_detr", last))
    if hasattr(HungarianMatcher, "_match_many"):
        check_parameters(HungarianMatcher._match_many, ("outputs_list", "targets", "group_detr", last))
    outputs, targets, _ = random_step(num_classes=7)
    host = deepcopy(matcher)
    fast = deepcopy(matcher)
    fast.__class__ = FastMatcher
    layers = [outputs, *outputs["aux_outputs"], outputs["enc_outputs"]]
    for groups in (1, NUM_GROUPS):
        desired = [host(layer, targets, group_detr=groups) for layer in layers]
        for actual in (
            [fast(layer, targets, group_detr=groups) for layer in layers],
            fast._match_many(layers, targets, groups),
        ):
            check_close(_sorted_pairs(actual), _sorted_pairs(desired))


def _sorted_pairs(layers: Sequence[Pairs]) -> dict[str, Tensor]:
    return {
        f"the matches of layer {i}": torch.cat([torch.stack((q, t))[:, q.argsort()] for q, t in pairs], 1)
        for i, pairs in enumerate(layers)
    }

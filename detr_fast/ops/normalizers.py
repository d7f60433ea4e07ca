"""What a batch's losses are divided by."""

from __future__ import annotations

import torch
from torch import Tensor

from detr_fast.ops.backends import traced
from detr_fast.ops.targets import Targets
from detr_fast.ops.weights import LossWeights


def count_boxes(targets: Targets, num_queries: int, weights: LossWeights, *, groups: int = 1) -> Tensor | int:
    """What ``weights.normalizer`` counts in this batch: its targets or its matched pairs, over all groups.

    A tensor where only the device knows.
    """
    if weights.normalizer == "matched":
        return _count_matched(targets, num_queries, groups)
    return groups * (targets.offsets[-1] if targets.padded else targets.num_targets)


def count_class_weight(targets: Targets, num_queries: int, weights: LossWeights, *, groups: int = 1) -> Tensor | float:
    """Sum of the cross-entropy's weights over all queries of one layer: matched ones 1, the others no_object.

    A tensor where only the device knows.
    """
    matched = _count_matched(targets, num_queries, groups)
    return matched + weights.no_object * (targets.num_images * num_queries - matched)


def at_least(count: Tensor | float, least: float) -> Tensor | float:
    """The count, or ``least`` where it is below."""
    return count.clamp(min=least) if isinstance(count, Tensor) else torch.sym_max(count, least)


def _count_matched(targets: Targets, num_queries: int, groups: int) -> Tensor | int:
    if targets.padded or traced(targets.offsets):
        return groups * targets.offsets.diff().clamp(max=num_queries // groups).sum()
    return groups * sum(min(size, num_queries // groups) for size in targets.sizes)

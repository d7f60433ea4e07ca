"""The divisors of a batch's losses."""

from __future__ import annotations

import torch
from torch import Tensor

from detr_fast.ops.targets import Targets
from detr_fast.ops.tracing import is_tracing
from detr_fast.ops.weights import LossWeights


def count_boxes(targets: Targets, num_queries: int, weights: LossWeights, *, groups: int = 1) -> Tensor | int:
    """Count what ``weights.normalizer`` names, the targets or the matched pairs of the batch, over all groups.

    The count is a tensor where only the device has it.
    """
    if weights.normalizer == "matched":
        return _count_matched(targets, num_queries, groups)
    return groups * (targets.offsets[-1] if targets.padded else targets.num_targets)


def count_class_weight(targets: Targets, num_queries: int, weights: LossWeights, *, groups: int = 1) -> Tensor | float:
    """Sum the weights of the cross-entropy over all queries of one layer: 1 if matched, else ``no_object``.

    The sum is a tensor where only the device has it.
    """
    matched = _count_matched(targets, num_queries, groups)
    return matched + weights.no_object * (targets.num_images * num_queries - matched)


def at_least(count: Tensor | float, minimum: float) -> Tensor | float:
    """Return the count, or ``minimum`` where it is below."""
    return count.clamp(min=minimum) if isinstance(count, Tensor) else torch.sym_max(count, minimum)


def _count_matched(targets: Targets, num_queries: int, groups: int) -> Tensor | int:
    if targets.padded or is_tracing(targets.offsets):
        return groups * targets.offsets.diff().clamp(max=num_queries // groups).sum()
    return groups * sum(min(size, num_queries // groups) for size in targets.sizes)

"""DETR's set criterion: matching, losses of every layer, and the numbers that are logged beside them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from detr_fast import ops
from detr_fast.ops.errors import cardinality_error, class_error
from detr_fast.ops.normalizers import at_least, count_boxes, count_class_weight
from detr_fast.ops.targets import Targets
from detr_fast.ops.weights import LossWeights, MatchWeights

PRESETS = ("detr", "mmdet", "deformable")


class HungarianMatcher(nn.Module):
    """Find the query of each target, for all layers and images in one call to each op.

    Args:
        weights: of the costs.
        groups: query groups; every target is matched once in each.
    """

    def __init__(self, weights: MatchWeights | None = None, *, groups: int = 1) -> None:
        super().__init__()
        self.weights = weights or MatchWeights()
        self.groups = groups

    @torch.no_grad()
    def forward(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        """Match.

        Args:
            logits: [L,B,Q,C].
            boxes: [L,B,Q,4], cxcywh in [0,1].
            targets: of the same B images.

        Returns:
            int64 [L,T], or [L,G,T] with groups: the query of each target, -1 for none.
        """
        cost = ops.match_cost(logits, boxes, targets, weights=self.weights, groups=self.groups)
        return ops.batch_linear_sum_assignment(cost, targets, groups=self.groups)


class CriterionOutput(NamedTuple):
    """What a criterion gives back."""

    total: Tensor  # scalar: the weighted sum over all losses and layers, to call backward on
    terms: dict[str, Tensor]  # scalars: losses before their weights, and errors that are only logged


class SetCriterion(nn.Module):
    """The loss of DETR (https://arxiv.org/abs/2005.12872, section 3.1), every decoder layer alike.

    Both divisors, of the box losses and of the cross-entropy, are means over the ranks of a distributed run,
    so that several ranks train as one with the whole batch does.

    Args:
        match: costs of the matching.
        loss: weights of the losses.
        groups: query groups (1 unless group-DETR).
    """

    def __init__(self, match: MatchWeights | None = None, loss: LossWeights | None = None, *, groups: int = 1) -> None:
        super().__init__()
        self.matcher = HungarianMatcher(match, groups=groups)
        self.weights = loss or LossWeights()

    @classmethod
    def preset(cls, name: str) -> SetCriterion:
        """The criterion of ``"detr"``, ``"mmdet"`` or ``"deformable"``."""
        if name not in PRESETS:
            raise ValueError(f"there is no preset {name!r}; the presets are {', '.join(PRESETS)}")
        return cls(getattr(MatchWeights, name)(), getattr(LossWeights, name)())

    def forward(self, logits: Tensor, boxes: Tensor, targets: Targets) -> CriterionOutput:
        """Match, and compute all losses.

        Args:
            logits: [L,B,Q,C]; layer L-1 is the final output.
            boxes: [L,B,Q,4], cxcywh in [0,1].
            targets: of the same B images.

        Returns:
            The total, and the terms under the original's names: ``loss_ce``, ``loss_bbox``, ``loss_giou``,
            ``cardinality_error`` for the final layer, the same with ``_0`` to ``_{L-2}`` for the auxiliary
            ones, and ``class_error`` in percent for the final layer.
        """
        query_index = self.matcher(logits, boxes, targets)
        num_boxes, class_normalizer = self._normalizers(logits, targets)
        total, losses = ops.weighted_set_loss(
            logits,
            boxes,
            targets,
            query_index,
            weights=self.weights,
            num_boxes=num_boxes,
            class_normalizer=class_normalizer,
        )
        with torch.no_grad():
            errors = {
                "cardinality_error": cardinality_error(logits, targets, softmax=self.weights.class_loss == "softmax")
            }
            terms = _by_layer({**losses, **errors})
            terms["class_error"] = class_error(logits[-1], targets, query_index[-1])
        return CriterionOutput(total, terms)

    def _normalizers(self, logits: Tensor, targets: Targets) -> tuple[Tensor | float, Tensor | float]:
        num_queries, groups, weights = logits.shape[2], self.matcher.groups, self.weights
        boxes: Tensor | float = count_boxes(targets, num_queries, weights, groups=groups)
        classes: Tensor | float = count_class_weight(targets, num_queries, weights, groups=groups)
        if dist.is_available() and dist.is_initialized():
            # Filled on the device: a copy from the host would wait for it.
            both = torch.stack(
                [n if isinstance(n, Tensor) else logits.new_full((), n, dtype=torch.float32) for n in (boxes, classes)]
            )
            dist.all_reduce(both)
            boxes, classes = (both / dist.get_world_size()).unbind()
        return at_least(boxes, 1), at_least(classes, weights.min_class_normalizer)


def _by_layer(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    named = {}
    for name, layers in terms.items():
        *auxiliary, final = layers.unbind()
        named[name] = final
        named.update({f"{name}_{i}": value for i, value in enumerate(auxiliary)})
    return named

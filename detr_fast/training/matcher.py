"""Bipartite matching of queries and targets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detr_fast import ops
from detr_fast.ops.targets import Targets
from detr_fast.ops.weights import MatchWeights


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

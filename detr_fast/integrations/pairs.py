"""Matches as other libraries hold them: for each image the matched queries and their targets."""

from __future__ import annotations

import torch
from torch import Tensor

from detr_fast.ops.targets import Targets

Pairs = list[tuple[Tensor, Tensor]]  # for each image its matched queries, ascending, and their targets, both int64


def to_pairs(query_index: Tensor, targets: Targets, num_queries: int) -> Pairs:
    """One layer's matches [G,T] as transformers has them, on the same device and without waiting for it."""
    groups = len(query_index)
    pairs = []
    for queries in query_index.split(targets.sizes, 1):  # [G,t]
        size = queries.shape[1]
        unmatched_last = queries.where(queries >= 0, num_queries).flatten()
        order = unmatched_last.argsort()[: groups * min(size, num_queries // groups)]
        pairs.append((unmatched_last[order], order % max(size, 1)))
    return pairs


def from_pairs(pairs: Pairs, targets: Targets, num_queries: int, groups: int) -> Tensor:
    """The opposite of :func:`to_pairs`: int64 [G,T]."""
    index = torch.full((groups, targets.num_targets), -1, device=targets.labels.device)
    start = 0
    for (queries, rows), size in zip(pairs, targets.sizes, strict=True):
        queries, rows = queries.to(index.device), rows.to(index.device)
        index[queries // (num_queries // groups), start + rows] = queries
        start += size
    return index

"""Matches in the format of the host libraries: for each image the matched queries and their targets."""

from __future__ import annotations

import torch
from torch import Tensor

from detr_fast.ops.targets import Targets

Pairs = list[tuple[Tensor, Tensor]]  # for each image its matched queries in ascending order and their targets, int64


def to_pairs(query_index: Tensor, targets: Targets, num_queries: int) -> Pairs:
    """Convert the matches of a layer to pairs, on the same device and without synchronization.

    Args:
        query_index: The query of each target, int64 [G,T], -1 where it is unmatched.
        targets: The targets.
        num_queries: Number of queries Q of all groups.

    Returns:
        For each image its matched queries in ascending order and their targets, both int64 [n].
    """
    groups = len(query_index)
    pairs = []
    for queries in query_index.split(targets.sizes, 1):  # [G,t]
        size = queries.shape[1]
        unmatched_last = queries.where(queries >= 0, num_queries).flatten()
        order = unmatched_last.argsort()[: groups * min(size, num_queries // groups)]
        pairs.append((unmatched_last[order], order % max(size, 1)))
    return pairs


def from_pairs(pairs: Pairs, targets: Targets, num_queries: int, groups: int) -> Tensor:
    """Convert the pairs of a layer to the query of each target; the inverse of :func:`to_pairs`.

    Args:
        pairs: For each image its matched queries and their targets, both int64 [n].
        targets: The targets.
        num_queries: Number of queries Q of all groups.
        groups: Number of query groups G.

    Returns:
        The query of each target, int64 [G,T], -1 where it is unmatched.
    """
    index = torch.full((groups, targets.num_targets), -1, device=targets.labels.device)
    start = 0
    for (queries, rows), size in zip(pairs, targets.sizes, strict=True):
        queries, rows = queries.to(index.device), rows.to(index.device)
        index[queries // (num_queries // groups), start + rows] = queries
        start += size
    return index

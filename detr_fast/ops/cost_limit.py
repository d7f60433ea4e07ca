"""Assignments in which a row stays unassigned rather than pay more than a limit.

They are the assignments of a larger problem, in which each row has a further column of its own, whose cost is the
limit. A row that is assigned its own column is unassigned.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


def as_limit(cost_limit: Any, *, single: bool) -> float:
    """Return the limit, rounded to float32 if ``single``, as the costs to which it is compared.

    Raises:
        TypeError: it is no real number.
        ValueError: it is not finite.
    """
    try:
        limit = float(cost_limit)
    except (TypeError, ValueError):
        raise TypeError(f"cost_limit must be a number, got {cost_limit!r}") from None
    if single:
        with np.errstate(over="ignore"):
            limit = float(np.float32(limit))
    if not math.isfinite(limit):
        raise ValueError(f"cost_limit must be finite in the dtype of the costs, got {cost_limit}")
    return limit


# torch.compile cannot trace the rounding, and runs it once instead.
as_limit._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_single(dtype: torch.dtype) -> bool:
    """Whether costs of a dtype are solved as float32; all others are as float64."""
    return dtype in (torch.float32, torch.float16, torch.bfloat16)


def extend_matrix(cost: np.ndarray, limit: float, forbidden: float = np.inf) -> np.ndarray:
    """Append the columns of the rows to a matrix of floats, [N,M] to [N,M+N]."""
    num_rows, num_cols = cost.shape
    extended = np.full((num_rows, num_cols + num_rows), forbidden, dtype=cost.dtype)
    extended[:, :num_cols] = cost
    np.fill_diagonal(extended[:, num_cols:], limit)
    return extended


class Limited(NamedTuple):
    """The problems of a batch, with a column for each target of an image after the queries of each group."""

    cost: Tensor  # [L,T,G*(Q+N)], N the maximum number of targets of an image
    limit: float
    groups: int
    queries: int  # Q, of one group

    def restore_index(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the query of each target among all of G*Q, and which targets are unassigned; both [L,G,T]."""
        width = self.cost.shape[2] // self.groups
        group = torch.arange(self.groups, device=index.device)[:, None]
        own = index - group * width  # in the target's group
        unassigned = own >= self.queries
        query = torch.where(index < 0, -1, own + group * self.queries)
        return query.masked_fill(unassigned, -1), unassigned

    def restore_duals(self, u: Tensor, v: Tensor, unassigned: Tensor) -> tuple[Tensor, Tensor]:
        """Return the duals of targets [L,G,T] and queries [L,B,G*Q], which suffice as the duals of all columns.

        The dual of a target's own column, which is negative at most where the target is unassigned, is added to that
        of the target.
        """
        layers, images = v.shape[:2]
        of_queries = v.view(layers, images, self.groups, -1)[..., : self.queries]
        return u.masked_fill(unassigned, self.limit), of_queries.flatten(2)


def extend_batch(cost: Tensor, offsets: Tensor, max_targets: int, groups: int, cost_limit: float) -> Limited:
    """Append a column for each target to its problem, without synchronization.

    Args:
        cost: [L,T,G*Q].
        offsets: int32 [B+1], on the device of ``cost``.
        max_targets: N, the maximum number of targets of an image.
        groups: the number G of query groups.
        cost_limit: the cost of these columns.

    Raises:
        TypeError: the limit is no real number.
        ValueError: the limit is not finite.
    """
    cost = cost.to(torch.float32 if is_single(cost.dtype) else torch.float64)
    limit = as_limit(cost_limit, single=cost.dtype == torch.float32)
    layers, targets, queries = cost.shape
    row = torch.arange(targets, device=cost.device)
    image = torch.searchsorted(offsets[1:], row, right=True).clamp(max=max(offsets.shape[0] - 2, 0))
    column = row - offsets[image]  # rows of a padded batch that belong to no target have none
    own = column[:, None] == torch.arange(max_targets, device=cost.device)
    columns = torch.full(own.shape, torch.inf, dtype=cost.dtype, device=cost.device).masked_fill(own, limit)
    columns = columns[None, :, None].expand(layers, -1, groups, -1)
    queries //= groups
    extended = torch.cat((cost.reshape(layers, targets, groups, queries), columns), 3).flatten(2)
    return Limited(extended, limit, groups, queries)

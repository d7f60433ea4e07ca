"""Proof that an assignment is optimal, by duality and without solving anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detr_fast.ops.batch_linear_sum_assignment import as_sizes, check_sizes
from detr_fast.ops.targets import Targets


@dataclass(frozen=True)
class AssignmentProof:
    """How far from a proof of optimality each problem is, in units of cost; 0 but for rounding if optimal.

    All of them are [L,B], or [L,G,B] with groups.
    """

    infeasibility: Tensor  # float64: the most by which the duals exceed what they may be
    slackness: Tensor  # float64: the most that a matched pair's cost exceeds its duals, or a free one's dual is not 0
    gap: Tensor  # float64: bounds from above what the assignment costs more than an optimal one
    optimal: Tensor  # bool: every target (or query, if fewer) has one of its own, and the three are rounding

    def __bool__(self) -> bool:
        """Whether every problem's assignment is optimal."""
        return bool(self.optimal.all())


def verify_assignment(
    cost: Tensor,
    index: Tensor,
    u: Tensor,
    v: Tensor,
    targets_or_sizes: Targets | Sequence[int] | None = None,
) -> AssignmentProof:
    """Check that assignments are optimal, in O(TQ).

    The duals u of targets and v of queries prove it if u + v is nowhere above the cost and equals it on matched
    pairs, and if on the side that has more members no dual is positive and those of its unmatched members are 0:
    then sum(u) + sum(v) is a lower bound of every assignment's cost, and this one attains it.

    Args:
        cost: [L,T,Q], as for :func:`batch_linear_sum_assignment`; or [T,Q], the matrix of one problem.
        index: int64 [L,T], [L,G,T], or [T]: the query of each target, -1 for none.
        u: the duals of the targets, of the shape of ``index``, as ``batch_linear_sum_assignment(...,
            return_duals=True)`` returns them. Wrong duals cannot make a wrong answer pass.
        v: [L,B,Q], or [Q]: the duals of the queries.
        targets_or_sizes: the targets, or the number of targets of each image. Not needed for one problem.

    Raises:
        ValueError: shapes do not fit together.
    """
    if cost.dim() == 2:
        cost, index, u, v = cost[None], index[None], u[None], v[None, None]
    grouped = index.dim() == 3
    index, u = (index, u) if grouped else (index[:, None], u[:, None])  # [L,G,T]
    layers, groups, num_targets = index.shape
    sizes = [num_targets] if targets_or_sizes is None else as_sizes(targets_or_sizes)
    check_sizes(cost, sizes)
    images, queries = len(sizes), cost.shape[2] // groups
    if u.shape != index.shape or (layers, num_targets) != cost.shape[:2] or v.shape != (layers, images, cost.shape[2]):
        raise ValueError(
            f"cost {list(cost.shape)} needs index and u [L,T] or [L,G,T] and v [L,B,Q], "
            f"got {list(index.shape)}, {list(u.shape)} and {list(v.shape)}"
        )
    v = v.reshape(layers, images, groups, queries).transpose(1, 2)  # [L,G,B,Q']
    cost = cost.double().reshape(layers, num_targets, groups, queries).transpose(1, 2)  # [L,G,T,Q']
    size = torch.tensor(sizes, device=cost.device)
    image = torch.arange(images, device=cost.device).repeat_interleave(size)  # [T]
    more_queries, more_targets = size <= queries, size >= queries  # [B]; square: neither side is restricted
    more_queries, more_targets = more_queries & ~more_targets, more_targets & ~more_queries

    def per_image(values: Tensor, reduce: str) -> Tensor:  # [L,G,T] -> [L,G,B]
        start = values.new_zeros(layers, groups, images)
        return start.scatter_reduce(2, image.expand_as(values), values, reduce, include_self=True)

    matched = index >= 0
    own_query = index.where(matched, 0) - queries * torch.arange(groups, device=index.device)[:, None]
    in_range = matched & (own_query >= 0) & (own_query < queries)
    own_query = own_query.where(in_range, 0)
    place = (image * queries + own_query).where(in_range, images * queries)
    taken = v.new_zeros(layers, groups, images * queries + 1)
    taken = taken.scatter_add(2, place, torch.ones_like(u))[..., :-1].unflatten(2, (images, queries))  # [L,G,B,Q']

    over = (u[..., None] + v[:, :, image] - cost).amax(-1) if queries else torch.zeros_like(u)
    infeasibility = per_image(over.clamp(min=0), "amax")
    positive_u = per_image(u.clamp(min=0), "amax") * more_targets
    positive_v = _largest(v.clamp(min=0)) * more_queries
    infeasibility = infeasibility.maximum(positive_u).maximum(positive_v)

    if queries:
        own_cost = cost.gather(3, own_query[..., None])[..., 0].where(in_range, 0)
        own_v = v[:, :, image].gather(3, own_query[..., None])[..., 0]
    else:
        own_cost = own_v = torch.zeros_like(u)
    slack = (own_cost - u - own_v).abs().where(in_range, u.abs())
    slackness = per_image(slack, "amax").maximum(_largest(v.abs() * (taken == 0)) * more_queries)

    # Lowering the duals of the smaller side by the infeasibility, and clipping those of the other, makes them feasible.
    fewer = size.clamp(max=queries)
    u_bound = u.where(~more_targets[image], u.clamp(max=0))
    v_bound = v.where(~more_queries[:, None], v.clamp(max=0))
    bound = per_image(u_bound, "sum") + v_bound.sum(-1) - fewer * infeasibility
    gap = (per_image(own_cost, "sum") - bound).clamp(min=0)

    pairs = per_image(in_range.double(), "sum")
    complete = (pairs == fewer) & (per_image((matched & ~in_range).double(), "amax") == 0) & (_largest(taken) <= 1)
    magnitude = per_image(u.abs() + own_cost.abs(), "amax").maximum(_largest(v.abs()))
    rounding = 64 * (fewer + 1) * torch.finfo(torch.float64).eps * magnitude
    optimal = complete & (infeasibility <= rounding) & (slackness <= rounding) & (gap <= (fewer + 1) * rounding)
    optimal &= gap.isfinite()
    proof = (infeasibility, slackness, gap, optimal)
    return AssignmentProof(*(x if grouped else x[:, 0] for x in proof))


def _largest(values: Tensor) -> Tensor:
    """Over the last dimension, 0 where there is nothing."""
    return values.amax(-1) if values.shape[-1] else values.sum(-1)

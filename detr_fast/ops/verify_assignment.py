"""Proof that an assignment is optimal, by duality and without solving anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from detr_fast.ops.batch_linear_sum_assignment import as_sizes, check_sizes
from detr_fast.ops.cost_limit import as_limit, extend_matrix, is_single
from detr_fast.ops.linear_sum_assignment import as_array
from detr_fast.ops.targets import Targets

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class AssignmentProof:
    """How far from a proof of optimality each problem is, in units of cost, on the CPU.

    All fields are [L,B], or [L,G,B] with groups.
    """

    infeasibility: Tensor  # float64: the maximum by which the duals exceed their constraints
    slackness: Tensor  # float64: the maximum |cost - dual sum| of a matched pair, or |dual| of an unmatched member
    gap: Tensor  # float64: an upper bound, rounding included, of the assignment's cost above that of an optimal one
    optimal: Tensor  # bool: the assignment is complete, and the three are within the rounding of its costs

    def __bool__(self) -> bool:
        """Whether every problem's assignment is proved optimal."""
        return bool(self.optimal.all())


def verify_assignment(
    cost: Tensor,
    index: Tensor,
    u: Tensor,
    v: Tensor,
    targets_or_sizes: Targets | Sequence[int] | None = None,
    *,
    cost_limit: float | None = None,
) -> AssignmentProof:
    """Prove that assignments are optimal, in O(TQ) and on the CPU.

    By weak duality (Kuhn, "The Hungarian method for the assignment problem", 1955), duals with u + v at most the cost,
    none of which is positive on the side with more members, bound the cost of every assignment from below by their
    sum. From the duals of that side and the costs, the duals of the other side are computed anew, so that the bound
    holds whatever duals were given; ``gap`` is the assignment's cost less the bound, and includes the rounding of this
    computation.

    An assignment is *optimal* if it is complete and if, for each member of the smaller side, the duals' violations and
    the gap are at most ``64 * eps * (|c| + (n + 1) * s)``: c is the member's own matched cost, n the number of members,
    s the median over the members of the median of their finite costs above their minimum, and eps that of float64. The
    tolerance depends on the costs alone: outliers among the costs of a few members do not widen it for the others. An
    assignment that is optimal but whose duals suffered from such outliers is then not proved.

    Args:
        cost: [L,T,Q], as for :func:`batch_linear_sum_assignment`; or [T,Q], the matrix of one problem.
        index: int64 [L,T], [L,G,T], or [T]: the query of each target, -1 for none.
        u: the duals of the targets, of the shape of ``index``, as ``batch_linear_sum_assignment(...,
            return_duals=True)`` returns them.
        v: [L,B,Q], or [Q]: the duals of the queries.
        targets_or_sizes: the targets, or the number of targets of each image. Not needed for one problem.
        cost_limit: that of the assignment. It is then proved optimal among all assignments of any number of targets,
            where each unassigned target costs the limit.

    Raises:
        ValueError: shapes do not fit together, or ``cost_limit`` is not finite.
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
    arrays = [as_array(x).astype(np.float64) for x in (cost, u, v)]
    limit = None if cost_limit is None else as_limit(cost_limit, single=is_single(cost.dtype))
    numbers = np.zeros((3, layers, groups, images))
    optimal = np.zeros((layers, groups, images), dtype=bool)
    for layer, group, image in np.ndindex(optimal.shape):
        targets = slice(sum(sizes[:image]), sum(sizes[: image + 1]))
        own = slice(group * queries, (group + 1) * queries)
        problem = _Problem(
            arrays[0][layer, targets, own],
            _within(as_array(index[layer, group, targets]), own),
            arrays[1][layer, group, targets],
            arrays[2][layer, image, own],
        )
        if limit is not None:
            problem = _extended(problem, limit)
        *numbers[:, layer, group, image], optimal[layer, group, image] = _prove(problem)
    proof = [torch.from_numpy(x if grouped else x[:, 0]) for x in (*numbers, optimal)]
    return AssignmentProof(*proof)


class _Problem(NamedTuple):
    """One problem, from the side of the rows."""

    cost: np.ndarray  # float64 [N,M]
    col_of_row: np.ndarray  # int64 [N], -1 for none
    row_dual: np.ndarray  # float64 [N]
    col_dual: np.ndarray  # float64 [M]


def _within(index: np.ndarray, own: slice) -> np.ndarray:
    """Return the queries of targets within their group, -1 for none, -2 for one of another group."""
    return np.where(index < 0, index, np.where((index < own.start) | (index >= own.stop), -2, index - own.start))


def _extended(problem: _Problem, limit: float) -> _Problem:
    """Return the problem in which each row has a column of its own, which an unassigned row is assigned."""
    num_rows, num_cols = problem.cost.shape
    return _Problem(
        extend_matrix(problem.cost, limit),
        np.where(problem.col_of_row == -1, num_cols + np.arange(num_rows), problem.col_of_row),
        problem.row_dual,
        np.concatenate((problem.col_dual, np.zeros(num_rows))),
    )


def _prove(problem: _Problem) -> tuple[float, float, float, bool]:
    """Return infeasibility, slackness, gap, and whether the assignment is optimal."""
    num_rows, num_cols = problem.cost.shape
    assigned = problem.col_of_row[problem.col_of_row >= 0]
    distinct = len(np.unique(assigned)) == len(assigned)
    if not distinct or (assigned >= num_cols).any() or (problem.col_of_row < -1).any():
        return np.inf, np.inf, np.inf, False
    if len(assigned) < min(num_rows, num_cols):
        return np.inf, np.inf, np.inf, False
    if num_rows > num_cols:
        problem = _transposed(problem)
    if not len(problem.cost):
        slackness = float(np.abs(problem.col_dual).max(initial=0))
        return 0.0, slackness, 0.0, slackness == 0
    with np.errstate(invalid="ignore", over="ignore"):
        return _prove_complete(problem)


def _transposed(problem: _Problem) -> _Problem:
    row_of_col = np.full(problem.cost.shape[1], -1, dtype=np.int64)
    (row,) = (problem.col_of_row >= 0).nonzero()
    row_of_col[problem.col_of_row[row]] = row
    return _Problem(problem.cost.T, row_of_col, problem.col_dual, problem.row_dual)


def _prove_complete(problem: _Problem) -> tuple[float, float, float, bool]:
    """Prove a problem with at most as many rows as columns, all rows assigned."""
    cost, col, u, v = problem
    rows = np.arange(len(cost))
    matched_cost = cost[rows, col]
    unmatched = np.ones(len(v), dtype=bool)
    unmatched[col] = False
    if np.isnan(cost).any() or (cost == -np.inf).any() or (matched_cost == np.inf).any():
        return np.inf, np.inf, np.inf, False
    tolerance = _tolerance(cost, matched_cost)

    infeasibility = np.maximum((u[:, None] + v - cost).max(1), 0)
    slackness = np.abs(matched_cost - u - v[col])
    positive = np.maximum(v, 0) if unmatched.any() else np.zeros(1)
    unmatched_dual = np.abs(v[unmatched]).max(initial=0)

    v = np.minimum(v, 0) if unmatched.any() else v
    u = (cost - v).min(1)
    excess = np.maximum(matched_cost - v[col] - u, 0)
    # Each difference is rounded by at most eps / 2 of itself.
    rounding = 2 * _EPS * (np.abs(u) + np.abs(matched_cost) + np.abs(v[col]))
    gap = excess + rounding
    total = gap.sum() - v[unmatched].sum()

    optimal = (
        (np.maximum(infeasibility, slackness) <= tolerance).all()
        and (gap <= tolerance).all()
        and max(positive.max(), unmatched_dual) <= tolerance.min()
        and np.isfinite(total)
    )
    worst = max(infeasibility.max(), positive.max()), max(slackness.max(), unmatched_dual)
    return float(worst[0]), float(worst[1]), float(total), bool(optimal)


def _tolerance(cost: np.ndarray, matched_cost: np.ndarray) -> np.ndarray:
    """Return what each row may deviate by, [N]; see :func:`verify_assignment`."""
    above = cost - cost.min(1, keepdims=True)
    spread = np.sort(np.nanmedian(np.where(above < np.inf, above, np.nan), 1))[(len(cost) - 1) // 2]
    return 64 * _EPS * (np.abs(matched_cost) + (len(cost) + 1) * spread)

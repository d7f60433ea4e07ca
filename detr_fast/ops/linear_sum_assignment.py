"""The linear sum assignment problem with SciPy's contract and answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from detr_fast.ops.cost_limit import as_limit, extend_matrix
from detr_fast.ops.dispatch import register_op


def linear_sum_assignment(
    cost_matrix: Any, maximize: bool = False, *, cost_limit: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Solve the linear sum assignment problem, with the contract and the answers of SciPy's function.

    Args:
        cost_matrix: anything two-dimensional [N,M] that converts safely to float64: an array, nested lists, a
            tensor. +inf forbids a pair (-inf with ``maximize``).
        maximize: whether to maximize the sum instead of minimizing it.
        cost_limit: the cost of leaving a row unassigned, with ``maximize`` its value, rounded to float32 where the
            matrix is. The total of the assigned pairs and of ``cost_limit`` for each other row is then minimized, as
            if each row had a further column of its own at this cost: no pair dearer than the limit is assigned, and
            each assignment is feasible. None: as many pairs as possible are assigned, whatever they cost.

    Returns:
        Row indices in ascending order and the column assigned to each: two int64 arrays [min(N,M)], or of as many
        elements as rows are assigned with ``cost_limit``. Among equally good assignments it is the one that SciPy
        returns, with ``cost_limit`` for the matrix [N,M+N] that has the further columns.

    Raises:
        ValueError: the matrix is not two-dimensional, contains NaN or -inf, or has no feasible assignment; or
            ``cost_limit`` is not finite.
        TypeError: the entries are strings, objects, complex numbers or others that are no real numbers.
    """
    if cost_limit is None:
        return _linear_sum_assignment(cost_matrix, maximize)
    cost = as_float_matrix(cost_matrix)
    limit = as_limit(cost_limit, single=cost.dtype == np.float32)
    extended = extend_matrix(cost, limit, -np.inf if maximize else np.inf)
    row, col = _linear_sum_assignment(extended, maximize)
    assigned = col < cost.shape[1]
    return row[assigned], col[assigned]


def as_array(cost: Tensor) -> np.ndarray:
    """Return a tensor on any device as an array, 16-bit floats as float32."""
    cost = cost.detach().cpu()
    return (cost.float() if cost.dtype in (torch.bfloat16, torch.float16) else cost).numpy()


def as_float_matrix(cost_matrix: Any) -> np.ndarray:
    """Convert as SciPy does, but keep float32.

    Raises:
        ValueError: it is not two-dimensional.
        TypeError: its entries are no real numbers.
    """
    array = np.asarray(as_array(cost_matrix) if isinstance(cost_matrix, Tensor) else cost_matrix)
    if array.dtype != np.float32 or not array.flags.aligned:
        array = np.require(array.astype(np.float64, casting="safe", copy=False), requirements="A")
    if array.ndim != 2:
        raise ValueError(f"expected a matrix (2-D array), got a {array.ndim} array")
    return array


@register_op
def _linear_sum_assignment(cost_matrix: Any, maximize: bool) -> tuple[np.ndarray, np.ndarray]:
    cost = as_float_matrix(cost_matrix)
    col_of_row, _, _ = solve(torch.from_numpy((-cost if maximize else cost).astype(np.float64)))
    row = (col_of_row >= 0).nonzero()[:, 0]
    return row.numpy(), col_of_row[row].numpy()


def solve(cost: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Assign the rows and columns of one matrix by shortest augmenting paths.

    The algorithm is that of D. F. Crouse, "On implementing 2D rectangular assignment algorithms" (IEEE Transactions
    on Aerospace and Electronic Systems 52(4), 2016), in the order of operations of SciPy's implementation, which
    decides between equally good assignments.

    Args:
        cost: float64 [N,M].

    Returns:
        The column of each row, -1 for none, int64 [N]; the duals of the rows [N] and of the columns [M].

    Raises:
        ValueError: the matrix contains NaN or -inf, or has no feasible assignment.
    """
    if (cost.isnan() | (cost == -torch.inf)).any():
        raise ValueError("matrix contains invalid numeric entries")
    num_rows, num_cols = cost.shape
    if num_rows > num_cols:
        row_of_col, v, u = solve(cost.T)
        col_of_row = torch.full((num_rows,), -1)
        col_of_row[row_of_col] = torch.arange(num_cols)
        return col_of_row, u, v

    u, v = cost.new_zeros(num_rows), cost.new_zeros(num_cols)
    col_of_row, row_of_col = torch.full((num_rows,), -1), torch.full((num_cols,), -1)
    for start in range(num_rows):
        distance = torch.full_like(v, torch.inf)  # of each column from the row `start`, in reduced costs
        parent = torch.full((num_cols,), -1)  # the row before each column on its shortest path
        visited_rows, visited_cols = [], []
        unvisited = torch.arange(num_cols - 1, -1, -1)
        row, reached = start, cost.new_zeros(())
        while row >= 0:
            visited_rows.append(row)
            through = reached + cost[row, unvisited] - u[row] - v[unvisited]
            closer = through < distance[unvisited]
            distance[unvisited[closer]] = through[closer]
            parent[unvisited[closer]] = row
            reached = distance[unvisited].min()
            if reached == torch.inf:
                raise ValueError("cost matrix is infeasible")
            nearest = (distance[unvisited] == reached).nonzero()[:, 0]
            free = nearest[row_of_col[unvisited[nearest]] < 0]
            # Of the columns at the least distance, the last free one, else the first.
            index = int(free[-1] if len(free) else nearest[0])
            col = int(unvisited[index])
            visited_cols.append(col)
            unvisited[index] = unvisited[-1]
            unvisited = unvisited[:-1]
            row = int(row_of_col[col])
        for row in visited_rows:
            u[row] += reached if row == start else reached - distance[col_of_row[row]]
        v[visited_cols] -= reached - distance[visited_cols]
        while True:  # augment along the path, from the free column back to the row `start`
            row = int(parent[col])
            row_of_col[col] = row
            col, col_of_row[row] = int(col_of_row[row]), col
            if row == start:
                break
    return col_of_row, u, v

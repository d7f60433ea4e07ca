"""SciPy's linear sum assignment, for tensors on any device."""

from __future__ import annotations

import sys
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detr_fast.ops.batch_linear_sum_assignment import HostAnswer, solve_each, solve_on_host
from detr_fast.ops.linear_sum_assignment import as_array


def has(op: str) -> bool:
    """Whether SciPy solves it."""
    return op in ("linear_sum_assignment", "batch_linear_sum_assignment")


@cache
def unavailable(op: str, device: torch.device) -> str | None:
    """Return why there is no SciPy, None where there is."""
    return None if find_spec("scipy") else "SciPy is not installed (pip install scipy)"


def automatic(device: torch.device) -> bool:
    """Always: it is taken where the extension is not built."""
    return True


def load(op: str) -> ModuleType:
    """Return this module."""
    return sys.modules[__name__]


def linear_sum_assignment(cost_matrix: Any, maximize: bool) -> tuple[np.ndarray, np.ndarray]:
    """Call SciPy's function; a tensor is first copied to the CPU."""
    from scipy.optimize import linear_sum_assignment as solve

    return solve(as_array(cost_matrix) if isinstance(cost_matrix, Tensor) else cost_matrix, maximize)


batch_linear_sum_assignment_lacks = frozenset({"duals"})


@solve_on_host
def batch_linear_sum_assignment(
    cost: np.ndarray, sizes: list[int], groups: int, num_threads: int, return_duals: bool
) -> HostAnswer:
    """Call SciPy's function for every problem of [L,T,Q]."""

    def solve_matrix(matrix: np.ndarray) -> tuple[np.ndarray, None, None]:
        col_of_row = np.full(len(matrix), -1, dtype=np.int64)
        row, col = linear_sum_assignment(matrix, False)
        col_of_row[row] = col
        return col_of_row, None, None

    return solve_each(solve_matrix, cost, sizes, groups, return_duals=False)

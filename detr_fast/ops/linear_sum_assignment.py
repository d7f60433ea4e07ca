"""Linear sum assignment: SciPy's function, and all the problems of a training step in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detr_fast.ops.backends import Backend, Column, Functions, triton
from detr_fast.ops.targets import Targets


def linear_sum_assignment(cost_matrix: Any, maximize: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Solve the linear sum assignment problem, with the contract and the answers of SciPy's function.

    Args:
        cost_matrix: anything two-dimensional [N,M] of real numbers or booleans: an array, nested lists, a
            tensor on the CPU. +inf forbids a pair (-inf with ``maximize``).
        maximize: look for the greatest sum instead of the least.

    Returns:
        Row indices in ascending order and the column assigned to each: two int64 arrays [min(N,M)]. Among
        equally good assignments it is the one that SciPy returns.

    Raises:
        ValueError: not two-dimensional, not numeric, NaN or -inf inside, or no assignment is feasible.
        TypeError: complex numbers.
    """
    return COLUMN.select(torch.device("cpu"))["linear_sum_assignment"](_as_array(cost_matrix), maximize)


def batch_linear_sum_assignment(
    cost: Tensor,  # [L,T,Q]
    targets_or_sizes: Targets | Sequence[int],
    *,
    groups: int = 1,
    backend: str | None = None,
) -> Tensor:
    """Match every image's targets to its queries, for all layers in one call.

    Args:
        cost: each target's cost over its own image's queries, as :func:`match_cost` returns it; targets image
            after image.
        targets_or_sizes: the targets, or how many each image has (they sum to T).
        groups: query groups in Q, group by group; every target is matched once in each.
        backend: a backend by name, or None for the fastest.

    Returns:
        int64 [L,T], or [L,G,T] with more than one group, on the device of ``cost``: the query of each target,
        counted over all of Q; -1 where there are more targets than queries. They are the indices that SciPy
        gives for each image's [Q,T] matrix, ties included.

    Raises:
        ValueError: shapes do not fit together, or a cost is NaN or -inf, or +inf leaves no assignment; it
            names layer, image and target.
        BackendError: the backend asked for cannot run here.
    """
    sizes = targets_or_sizes.sizes if isinstance(targets_or_sizes, Targets) else [int(n) for n in targets_or_sizes]
    if cost.dim() != 3 or sum(sizes) != cost.shape[1] or min(sizes, default=0) < 0:
        raise ValueError(f"cost must be [L,T,Q] with T the sum of the sizes {sizes}, got {list(cost.shape)}")
    if groups < 1 or cost.shape[2] % groups:
        raise ValueError(f"{cost.shape[2]} queries cannot be divided into {groups} groups")
    offsets = targets_or_sizes.offsets if isinstance(targets_or_sizes, Targets) else None
    solve = COLUMN.select(cost.device, backend)["batch_linear_sum_assignment"]
    index = solve(cost.detach(), sizes, groups, offsets)  # [L,G,T]
    return index if groups > 1 else index[:, 0]


def _as_array(cost: Any) -> np.ndarray:
    """What SciPy makes of its argument: a two-dimensional float array, float32 where it was."""
    if isinstance(cost, Tensor):
        cost = _to_numpy(cost)
    array = np.asarray(cost)
    if array.ndim != 2:
        raise ValueError(f"expected a matrix (2-D array), got a {array.ndim} array")
    if array.dtype.kind in "SU":
        raise ValueError(f"expected a matrix of numbers, got {array.dtype}")
    if array.dtype in (np.float32, np.float64):
        return array
    # float() refuses what is not a number; complex numbers are no number to it.
    return array.astype(np.float64, casting="unsafe" if array.dtype.kind == "O" else "same_kind")


def _to_numpy(cost: Tensor) -> np.ndarray:
    cost = cost.detach().cpu()
    return (cost.float() if cost.dtype in (torch.bfloat16, torch.float16) else cost).numpy()


def linear_sum_assignment_cpp(cost: np.ndarray, maximize: bool) -> tuple[np.ndarray, np.ndarray]:
    import detr_fast._C as _C

    return _C.solve(-cost if maximize else cost)


def batch_linear_sum_assignment_cpp(
    cost: Tensor, sizes: list[int], groups: int, offsets: Tensor | None = None
) -> Tensor:
    import detr_fast._C as _C

    array = _to_numpy(cost)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    index = _C.solve_batch(array, np.asarray(sizes, dtype=np.int64), groups)
    return torch.from_numpy(index).to(cost.device)


def linear_sum_assignment_scipy(cost: np.ndarray, maximize: bool) -> tuple[np.ndarray, np.ndarray]:
    from scipy.optimize import linear_sum_assignment as solve

    return solve(cost, maximize)


def batch_linear_sum_assignment_scipy(
    cost: Tensor, sizes: list[int], groups: int, offsets: Tensor | None = None
) -> Tensor:
    array = _to_numpy(cost)  # [L,T,Q]
    num_layers, num_targets, num_queries = array.shape
    index = np.full((num_layers, groups, num_targets), -1, dtype=np.int64)
    for layer in range(num_layers):
        for group, queries in enumerate(np.split(np.arange(num_queries), groups)):
            start = 0
            for image, size in enumerate(sizes):
                block = array[layer, start : start + size][:, queries]
                try:
                    query, target = linear_sum_assignment_scipy(block.T, False)
                except ValueError as error:
                    raise ValueError(f"layer {layer}, image {image}: {error}") from None
                index[layer, group, start + target] = queries[query]
                start += size
    return torch.from_numpy(index).to(cost.device)


def _load_triton() -> Functions:
    from detr_fast.kernels.linear_sum_assignment import batch_linear_sum_assignment_triton

    # A single NumPy matrix is solved where it lies.
    return {
        "linear_sum_assignment": linear_sum_assignment_cpp,
        "batch_linear_sum_assignment": batch_linear_sum_assignment_triton,
    }


def _load_cpp() -> Functions:
    return {
        "linear_sum_assignment": linear_sum_assignment_cpp,
        "batch_linear_sum_assignment": batch_linear_sum_assignment_cpp,
    }


def _cpp_unavailable(device: torch.device) -> str | None:
    try:
        import detr_fast._C  # noqa: F401
    except ImportError as error:
        return f"the extension is not built ({error}); install the package with pip"
    return None


def _load_scipy() -> Functions:
    return {
        "linear_sum_assignment": linear_sum_assignment_scipy,
        "batch_linear_sum_assignment": batch_linear_sum_assignment_scipy,
    }


def _scipy_unavailable(device: torch.device) -> str | None:
    from importlib.util import find_spec

    return None if find_spec("scipy") else "SciPy is not installed (pip install scipy)"


COLUMN = Column(
    "linear_sum_assignment",
    [
        triton(_load_triton),
        Backend("cpp", _load_cpp, _cpp_unavailable),
        Backend("scipy", _load_scipy, _scipy_unavailable),
    ],
)

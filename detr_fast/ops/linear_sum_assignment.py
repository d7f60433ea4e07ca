"""Linear sum assignment: SciPy's function, and all the problems of a training step in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from detr_fast.ops.backends import (
    Backend,
    Column,
    Functions,
    environment_key,
    from_environment,
    traced,
    triton,
    why_no_extension,
)
from detr_fast.ops.host_solvers import CPP, SCIPY, why_no_scipy
from detr_fast.ops.library import Op
from detr_fast.ops.solver_choice import Work, on_device
from detr_fast.ops.targets import Targets, offsets_of

CPU = torch.device("cpu")
THREADS = "DETR_FAST_NUM_THREADS"
_threads_key = environment_key(THREADS)


class Assignment(NamedTuple):
    """Matched queries and the duals that prove them optimal; see :func:`verify_assignment`."""

    query_index: Tensor  # int64 [L,T] or [L,G,T]: the query of each target, -1 for none
    u: Tensor  # float64, like query_index: the dual of each target
    v: Tensor  # float64 [L,B,Q]: the dual of each query


def linear_sum_assignment(cost_matrix: Any, maximize: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Solve the linear sum assignment problem, with the contract and the answers of SciPy's function.

    Args:
        cost_matrix: anything two-dimensional [N,M] that converts safely to float64: an array, nested lists, a
            tensor on the CPU. +inf forbids a pair (-inf with ``maximize``).
        maximize: look for the greatest sum instead of the least.

    Returns:
        Row indices in ascending order and the column assigned to each: two int64 arrays [min(N,M)]. Among
        equally good assignments it is the one that SciPy returns.

    Raises:
        ValueError: not two-dimensional, NaN or -inf inside, or no assignment is feasible.
        TypeError: strings, objects, complex numbers and whatever else is no real number.
    """
    return COLUMN.choose(CPU).load()["linear_sum_assignment"](cost_matrix, maximize)


@overload
def batch_linear_sum_assignment(
    cost: Tensor,
    targets_or_sizes: Targets | Sequence[int],
    *,
    groups: int = ...,
    num_threads: int | None = ...,
    on_error: str = ...,
    return_duals: Literal[False] = ...,
    backend: str | None = ...,
) -> Tensor: ...
@overload
def batch_linear_sum_assignment(
    cost: Tensor,
    targets_or_sizes: Targets | Sequence[int],
    *,
    groups: int = ...,
    num_threads: int | None = ...,
    on_error: str = ...,
    return_duals: Literal[True],
    backend: str | None = ...,
) -> Assignment: ...
def batch_linear_sum_assignment(
    cost: Tensor,  # [L,T,Q]
    targets_or_sizes: Targets | Sequence[int],
    *,
    groups: int = 1,
    num_threads: int | None = None,
    on_error: str = "raise",
    return_duals: bool = False,
    backend: str | None = None,
) -> Tensor | Assignment:
    """Match every image's targets to its queries, for all layers in one call.

    Args:
        cost: each target's cost over its own image's queries, as :func:`match_cost` returns it; targets image
            after image. Strides may be anything; float32 and float64 are read where they lie. From a GPU it
            comes through pinned memory in one copy, and the answer goes back in another.
        targets_or_sizes: the targets, or how many each image has (they sum to T).
        groups: query groups in Q, group by group; every target is matched once in each.
        num_threads: the most threads to use; small work is done by one whatever this says. None: the
            environment variable ``DETR_FAST_NUM_THREADS``, or 1. Answers do not depend on it.
        on_error: "raise", or "mark": a problem that cannot be solved has -1 for all its targets in the answer,
            and the others have theirs.
        return_duals: return the duals as well.
        backend: a backend by name, or None for the fastest.

    Returns:
        int64 [L,T], or [L,G,T] with more than one group, on the device of ``cost``: the query of each target,
        counted over all of Q; -1 where there are more targets than queries. They are the indices that SciPy
        gives for each image's [Q,T] matrix, ties included. With ``return_duals`` an :class:`Assignment`.

    Raises:
        ValueError: shapes do not fit together, or a cost is NaN or -inf, or +inf leaves no assignment; it
            names layer, image and target.
        BackendError: the backend asked for cannot run here.
    """
    sizes, offsets, most = _problems(cost, targets_or_sizes, groups)
    num_images = len(sizes) if offsets is None else offsets.shape[0] - 1
    if on_error not in ("raise", "mark"):
        raise ValueError(f'on_error must be "raise" or "mark", got {on_error!r}')
    if num_threads is None:
        num_threads = _threads_from_environment()
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {num_threads}")
    answer = BATCH(
        cost.detach(),
        sizes,
        offsets,
        most,
        groups,
        num_threads,
        return_duals,
        on_error == "mark",
        backend=backend,
        variant="duals" if return_duals else None,
        work=Work(cost.shape[0] * groups * num_images, most, cost.shape[2] // groups),
    )
    index = answer[0] if groups > 1 else answer[0][:, 0]
    return Assignment(index, answer[1] if groups > 1 else answer[1][:, 0], answer[2]) if return_duals else index


def as_sizes(targets_or_sizes: Targets | Sequence[int]) -> list[int]:
    """How many targets each image has."""
    return targets_or_sizes.sizes if isinstance(targets_or_sizes, Targets) else [int(n) for n in targets_or_sizes]


def check_sizes(cost: Tensor, sizes: list[int]) -> None:
    """Raise ValueError where ``cost`` [L,T,Q] does not fit the numbers of targets."""
    if sum(sizes) != cost.shape[1] or any(size < 0 for size in sizes):
        raise ValueError(f"cost must be [L,T,Q] with T the sum of the sizes {sizes}, got {list(cost.shape)}")


def _problems(
    cost: Tensor, targets_or_sizes: Targets | Sequence[int], groups: int
) -> tuple[list[int], Tensor | None, int]:
    """The sizes, or none where they lie in the offsets; the offsets; and what no size exceeds."""
    if cost.dim() != 3:
        raise ValueError(f"cost must be [L,T,Q], got {list(cost.shape)}")
    if groups < 1 or cost.shape[2] % groups:
        raise ValueError(f"{cost.shape[2]} queries cannot be divided into {groups} groups")
    if not isinstance(targets_or_sizes, Targets):
        sizes = as_sizes(targets_or_sizes)
        check_sizes(cost, sizes)
        return sizes, None, max(sizes, default=0)
    targets = targets_or_sizes
    if targets.num_targets != cost.shape[1]:
        raise ValueError(f"cost must be [L,T,Q] of {targets.num_targets} targets, got {list(cost.shape)}")
    # Under torch.compile each size that is looked at would be a reason to compile again.
    return [] if targets.padded or traced(cost) else targets.sizes, targets.offsets, targets.most


def _threads_from_environment() -> int:
    value = from_environment(THREADS, _threads_key)
    if value is None:
        return 1
    if not value.isdecimal():
        raise ValueError(f"{THREADS} must be a number, got {value!r}")
    return int(value)


_threads_from_environment._dynamo_marked_constant = True  # type: ignore[attr-defined]  # see Column.choose_name


def _load_triton() -> Functions:
    from detr_fast.kernels.linear_sum_assignment import batch_linear_sum_assignment as solve

    def run(
        cost: Tensor,
        sizes: list[int],
        offsets: Tensor | None,
        most: int,
        groups: int,
        num_threads: int,
        return_duals: bool,
        mark: bool,
    ) -> list[Tensor]:
        return [solve(cost, offsets_of(sizes, cost.device) if offsets is None else offsets, most, groups, mark)]

    # A single matrix is solved where it lies.
    return {**CPP, "batch_linear_sum_assignment": run}


COLUMN = Column(
    "linear_sum_assignment",
    [
        triton(_load_triton, fits=on_device),
        Backend("cpp", lambda: CPP, lambda device: why_no_extension(), frozenset({"duals"})),
        Backend("scipy", lambda: SCIPY, lambda device: why_no_scipy()),
    ],
)


def _fake(
    cost: Tensor,
    sizes: list[int],
    offsets: Tensor | None,
    most: int,
    groups: int,
    num_threads: int,
    return_duals: bool,
    mark: bool,
) -> list[Tensor]:
    layers, targets, queries = cost.shape
    index = cost.new_empty((layers, groups, targets), dtype=torch.int64)
    if not return_duals:
        return [index]
    images = len(sizes) if offsets is None else offsets.shape[0] - 1
    duals = [(layers, groups, targets), (layers, images, queries)]
    return [index, *(cost.new_empty(shape, dtype=torch.float64) for shape in duals)]


BATCH = Op(
    COLUMN,
    "batch_linear_sum_assignment",
    {
        "cost": "Tensor",
        "sizes": "SymInt[]",
        "offsets": "Tensor?",
        "most": "SymInt",
        "groups": "int",
        "num_threads": "int",
        "return_duals": "bool",
        "mark": "bool",
    },
    "Tensor[]",
    _fake,
)

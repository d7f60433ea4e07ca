"""Linear sum assignment: SciPy's function, and all the problems of a training step in one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor

from detr_fast.ops.backends import Backend, Column, Functions, triton, why_no_extension
from detr_fast.ops.targets import Targets

CPU = torch.device("cpu")


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
    return COLUMN.select(CPU)["linear_sum_assignment"](cost_matrix, maximize)


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
    sizes = check_sizes(cost, targets_or_sizes, groups)
    if on_error not in ("raise", "mark"):
        raise ValueError(f'on_error must be "raise" or "mark", got {on_error!r}')
    if num_threads is None:
        num_threads = _threads_from_environment()
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {num_threads}")
    offsets = targets_or_sizes.offsets if isinstance(targets_or_sizes, Targets) else None
    solve = COLUMN.select(cost.device, backend)["batch_linear_sum_assignment"]
    index, u, v, failures = solve(cost.detach(), sizes, groups, num_threads, return_duals, offsets)
    if failures and on_error == "raise":
        raise ValueError(failures[0])
    index = index if groups > 1 else index[:, 0]
    return Assignment(index, u if groups > 1 else u[:, 0], v) if return_duals else index


def matched_pairs(index: Tensor, targets_or_sizes: Targets | Sequence[int]) -> list[list[tuple[Tensor, Tensor]]]:
    """The answer in the form that DETR's matcher returns.

    Args:
        index: int64 [L,T] or [L,G,T], as :func:`batch_linear_sum_assignment` returns it, on the CPU.
        targets_or_sizes: the targets, or how many each image has.

    Returns:
        For each layer and image the matched queries, ascending, and the target of each, counted within the
        image; with groups, those of all groups.
    """
    sizes = np.array(as_sizes(targets_or_sizes), dtype=np.int64)
    query = index.numpy()
    layers, num_images, num_targets = len(query), len(sizes), query.shape[-1]
    image = np.arange(num_images).repeat(sizes)  # [T]
    target = np.arange(num_targets) - (sizes.cumsum() - sizes)[image]
    problem = image + num_images * np.arange(layers).reshape(-1, *[1] * (query.ndim - 1))  # [L,(1,)T]
    problem, target = (np.broadcast_to(x, query.shape).ravel() for x in (problem, target))
    query = query.ravel()
    order = (problem * (query.max(initial=0) + 1) + query).argsort()
    order = order[query[order] >= 0]
    counts = np.bincount(problem[order], minlength=layers * num_images).tolist()
    pairs = list(zip(*(torch.from_numpy(x[order]).split(counts) for x in (query, target)), strict=True))
    return [pairs[layer * num_images : (layer + 1) * num_images] for layer in range(layers)]


def as_sizes(targets_or_sizes: Targets | Sequence[int]) -> list[int]:
    """How many targets each image has."""
    return targets_or_sizes.sizes if isinstance(targets_or_sizes, Targets) else [int(n) for n in targets_or_sizes]


def check_sizes(cost: Tensor, targets_or_sizes: Targets | Sequence[int], groups: int) -> list[int]:
    """How many targets each image has; ValueError where ``cost`` [L,T,Q] does not fit."""
    sizes = as_sizes(targets_or_sizes)
    if cost.dim() != 3 or sum(sizes) != cost.shape[1] or min(sizes, default=0) < 0:
        raise ValueError(f"cost must be [L,T,Q] with T the sum of the sizes {sizes}, got {list(cost.shape)}")
    if groups < 1 or cost.shape[2] % groups:
        raise ValueError(f"{cost.shape[2]} queries cannot be divided into {groups} groups")
    return sizes


# Index [L,G,T], duals [L,G,T] and [L,B,Q] where they were asked for, and what is wrong with which problem.
HostAnswer: TypeAlias = tuple[np.ndarray, np.ndarray | None, np.ndarray | None, list[str]]
Answer: TypeAlias = tuple[Tensor, Tensor | None, Tensor | None, list[str]]


def _on_host(solve: Callable[..., HostAnswer]) -> Callable[..., Answer]:
    """A solver of NumPy arrays for tensors on any device."""

    def run(
        cost: Tensor, sizes: list[int], groups: int, num_threads: int, return_duals: bool, offsets: Tensor | None
    ) -> Answer:
        *arrays, failures = solve(_to_host(cost), sizes, groups, num_threads, return_duals)
        index, u, v = (None if x is None else _to_device(torch.from_numpy(x), cost.device) for x in arrays)
        assert index is not None
        return index, u, v, failures

    return run


def _threads_from_environment() -> int:
    value = os.environ.get("DETR_FAST_NUM_THREADS", "1")
    if not value.isdecimal():
        raise ValueError(f"DETR_FAST_NUM_THREADS must be a number, got {value!r}")
    return int(value)


def _to_host(cost: Tensor) -> Tensor:
    """The cost on the CPU. From a GPU in one copy, which pinned memory lets run at full speed."""
    if cost.device.type != "cuda":
        return cost.cpu()
    host = torch.empty_like(cost, device="cpu", pin_memory=True)
    host.copy_(cost, non_blocking=True)
    torch.cuda.current_stream(cost.device).synchronize()
    return host


def _to_device(answer: Tensor, device: torch.device) -> Tensor:
    """The answer on ``device``. To a GPU it is on its way when this returns: nobody waits for it."""
    if device.type != "cuda":
        return answer.to(device)
    return answer.pin_memory().to(device, non_blocking=True)


def _to_numpy(cost: Tensor) -> np.ndarray:
    return (cost.float() if cost.dtype in (torch.bfloat16, torch.float16) else cost).numpy()


def _as_floats(cost: Any) -> np.ndarray:
    """What SciPy makes of its argument, but float32 where it was."""
    array = np.asarray(_to_numpy(cost.detach().cpu()) if isinstance(cost, Tensor) else cost)
    if array.dtype != np.float32 or not array.flags.aligned:
        array = np.require(array.astype(np.float64, casting="safe", copy=False), requirements="A")
    if array.ndim != 2:
        raise ValueError(f"expected a matrix (2-D array), got a {array.ndim} array")
    return array


def linear_sum_assignment_cpp(cost: Any, maximize: bool) -> tuple[np.ndarray, np.ndarray]:
    answer = None if maximize else _extension().solve(cost)  # which takes arrays of floats only
    if answer is None:
        array = _as_floats(cost)
        answer = _extension().solve(-array if maximize else array)
    return answer


def batch_linear_sum_assignment_cpp(
    cost: Tensor, sizes: list[int], groups: int, num_threads: int, return_duals: bool
) -> HostAnswer:
    array = _to_numpy(cost)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    index, u, v, failures = _extension().solve_batch(array, sizes, groups, num_threads, return_duals)
    return index, u, v, [_describe_failure(*failure) for failure in failures]


def _describe_failure(invalid: bool, layer: int, image: int, target: int) -> str:
    where = f"layer {layer}, image {image}" + (f", target {target}" if target >= 0 else "")
    if invalid:
        return f"{where}: the matching cost holds NaN or -inf; were the model's logits and boxes finite?"
    return f"{where}: the cost matrix is infeasible, too many pairs are forbidden by +inf"


def linear_sum_assignment_scipy(cost: Any, maximize: bool) -> tuple[np.ndarray, np.ndarray]:
    from scipy.optimize import linear_sum_assignment as solve

    return solve(_to_numpy(cost.detach().cpu()) if isinstance(cost, Tensor) else cost, maximize)


def batch_linear_sum_assignment_scipy(
    cost: Tensor, sizes: list[int], groups: int, num_threads: int, return_duals: bool
) -> HostAnswer:
    if return_duals:
        raise ValueError('SciPy returns no duals; ask for them with backend="cpp"')
    array = _to_numpy(cost)  # [L,T,Q]
    num_layers, num_targets, num_queries = array.shape
    index = np.full((num_layers, groups, num_targets), -1, dtype=np.int64)
    failures = []
    for layer in range(num_layers):
        for group, queries in enumerate(np.split(np.arange(num_queries), groups)):
            start = 0
            for image, size in enumerate(sizes):
                block = array[layer, start : start + size][:, queries]
                try:
                    query, target = linear_sum_assignment_scipy(block.T, False)
                    index[layer, group, start + target] = queries[query]
                except ValueError as error:
                    failures.append(f"layer {layer}, image {image}: {error}")
                start += size
    return index, None, None, failures


@cache
def _extension() -> Any:
    return import_module("detr_fast._C")


@cache
def _why_no_scipy() -> str | None:
    return None if find_spec("scipy") else "SciPy is not installed (pip install scipy)"


def _load_triton() -> Functions:
    from detr_fast.kernels.linear_sum_assignment import batch_linear_sum_assignment_triton as solve

    def run(
        cost: Tensor, sizes: list[int], groups: int, num_threads: int, return_duals: bool, offsets: Tensor | None
    ) -> Answer:
        if return_duals:
            raise ValueError('the Triton solver returns no duals; ask for them with backend="cpp"')
        return solve(cost, sizes, groups, offsets), None, None, []

    # A single matrix is solved where it lies.
    return {**CPP, "batch_linear_sum_assignment": run}


CPP: Functions = {
    "linear_sum_assignment": linear_sum_assignment_cpp,
    "batch_linear_sum_assignment": _on_host(batch_linear_sum_assignment_cpp),
}
SCIPY: Functions = {
    "linear_sum_assignment": linear_sum_assignment_scipy,
    "batch_linear_sum_assignment": _on_host(batch_linear_sum_assignment_scipy),
}

COLUMN = Column(
    "linear_sum_assignment",
    [
        triton(_load_triton),
        Backend("cpp", lambda: CPP, lambda device: why_no_extension()),
        Backend("scipy", lambda: SCIPY, lambda device: _why_no_scipy()),
    ],
)

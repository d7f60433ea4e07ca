"""The solvers that run on the host: the C++ extension's and SciPy's, for tensors on any device."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from detr_fast.ops.backends import Functions

# Index [L,G,T], duals [L,G,T] and [L,B,Q] where they were asked for, and what is wrong with which problem.
HostAnswer: TypeAlias = tuple[np.ndarray, np.ndarray | None, np.ndarray | None, list[str]]


def _on_host(solve: Callable[..., HostAnswer]) -> Callable[..., list[Tensor]]:
    """A solver of NumPy arrays for tensors on any device."""

    def run(
        cost: Tensor,  # [L,T,Q]
        sizes: list[int],
        offsets: Tensor | None,
        most: int,
        groups: int,
        num_threads: int,
        return_duals: bool,
        mark: bool,
    ) -> list[Tensor]:
        if offsets is not None and not sizes:
            sizes = offsets.diff().tolist()
        unused = cost.shape[1] - sum(sizes)  # rows that are kept for more targets
        kept = cost[:, :-unused] if unused else cost
        *arrays, failures = solve(_to_host(kept), sizes, groups, num_threads, return_duals)
        if failures and not mark:
            raise ValueError(failures[0])
        if unused:
            rest = ((0, 0), (0, 0), (0, unused))
            arrays[:2] = (
                None if x is None else np.pad(x, rest, constant_values=fill)
                for x, fill in zip(arrays[:2], (-1, 0), strict=True)
            )
        return [_to_device(torch.from_numpy(x), cost.device) for x in arrays if x is not None]

    return run


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
def why_no_scipy() -> str | None:
    """Why there is no SciPy, None where there is."""
    return None if find_spec("scipy") else "SciPy is not installed (pip install scipy)"


CPP: Functions = {
    "linear_sum_assignment": linear_sum_assignment_cpp,
    "batch_linear_sum_assignment": _on_host(batch_linear_sum_assignment_cpp),
}
SCIPY: Functions = {
    "linear_sum_assignment": linear_sum_assignment_scipy,
    "batch_linear_sum_assignment": _on_host(batch_linear_sum_assignment_scipy),
}

"""The assignment problems of a training step, all layers and images in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor

from detr_fast.ops.arguments import as_integer, check_tensor
from detr_fast.ops.cost_limit import extend_batch
from detr_fast.ops.dispatch import environment_key, from_environment, register_op
from detr_fast.ops.linear_sum_assignment import as_array, solve
from detr_fast.ops.targets import Targets, offsets_of
from detr_fast.ops.tracing import is_tracing

THREADS = "DETR_FAST_NUM_THREADS"
_threads_key = environment_key(THREADS)

# Index [L,G,T]; duals [L,G,T] and [L,B,Q], None where they were not asked for; a message for each failed problem.
HostAnswer: TypeAlias = tuple[np.ndarray, np.ndarray | None, np.ndarray | None, list[str]]


class Assignment(NamedTuple):
    """Matched queries and the duals that prove them optimal; see :func:`verify_assignment`."""

    query_index: Tensor  # int64 [L,T] or [L,G,T]: the query of each target, -1 for none
    u: Tensor  # float64, like query_index: the dual of each target
    v: Tensor  # float64 [L,B,Q]: the dual of each query


class Work(NamedTuple):
    """The problems of a call."""

    problems: int
    max_targets: int  # of the largest problem
    queries: int


@overload
def batch_linear_sum_assignment(
    cost: Tensor,
    targets_or_sizes: Targets | Sequence[int],
    *,
    groups: int = ...,
    num_threads: int | None = ...,
    on_error: str = ...,
    return_duals: Literal[False] = ...,
    cost_limit: float | None = ...,
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
    cost_limit: float | None = ...,
    backend: str | None = ...,
) -> Assignment: ...
def batch_linear_sum_assignment(
    cost: Tensor,
    targets_or_sizes: Targets | Sequence[int],
    *,
    groups: int = 1,
    num_threads: int | None = None,
    on_error: str = "raise",
    return_duals: bool = False,
    cost_limit: float | None = None,
    backend: str | None = None,
) -> Tensor | Assignment:
    """Match every image's targets to its queries, for all layers in one call.

    Args:
        cost: [L,T,Q], each target's cost over its own image's queries, as :func:`match_cost` returns it; targets are
            in image order. Strides are arbitrary; float32 and float64 are read in place. From a GPU it is copied once,
            through pinned memory, where the solver runs on the host.
        targets_or_sizes: the targets, or the number of targets of each image (they sum to T).
        groups: number of query groups G in Q, group by group; every target is matched once in each.
        num_threads: maximum number of threads; small work is done by one. None: the environment variable
            ``DETR_FAST_NUM_THREADS``, or 1. The answer does not depend on it.
        on_error: ``"raise"``, or ``"mark"``: a problem that cannot be solved has -1 for all its targets, and the
            others are solved.
        return_duals: whether to return the duals as well.
        cost_limit: the cost of leaving a target unassigned, rounded to float32 where the costs are of 16 or 32 bits.
            The total of the matched pairs and of ``cost_limit`` for each other target is then minimized, as if each
            target had a further query of its own at this cost: no pair dearer than the limit is matched, and +inf may
            forbid all pairs of a target. None: as many targets as possible are matched, whatever they cost.
        backend: a backend by name, or None for the fastest.

    Returns:
        int64 [L,T], or [L,G,T] with more than one group, on the device of ``cost``: the query of each target,
        counted over all of Q; -1 where a target is unassigned, since there are more targets than queries or by
        ``cost_limit``. The indices are those that SciPy returns for each image's [Q,T] matrix, ties included, or with
        ``cost_limit`` for its [Q+T,T] matrix. With ``return_duals`` an :class:`Assignment`.

    Raises:
        ValueError: shapes do not fit together, or a cost is NaN or -inf, or +inf leaves no assignment; the message
            names layer, image and target. Or ``cost_limit`` is not finite.
        TypeError: the costs are no tensor or complex, ``targets_or_sizes`` is a list of mappings, or a size,
            ``groups`` or ``num_threads`` is no integer.
        BackendError: the backend asked for cannot run here.
    """
    groups = as_integer("groups", groups)
    sizes, offsets, max_targets = _problems(cost, targets_or_sizes, groups)
    num_images = len(sizes) if offsets is None else offsets.shape[0] - 1
    if on_error not in ("raise", "mark"):
        raise ValueError(f'on_error must be "raise" or "mark", got {on_error!r}')
    if num_threads is None:
        num_threads = _threads_from_environment()
    num_threads = as_integer("num_threads", num_threads)
    if not 1 <= num_threads < 2**31:
        raise ValueError(f"num_threads must be at least 1 and below 2**31, got {num_threads}")
    cost = cost.detach()
    limited = None
    if cost_limit is not None:
        if offsets is None:
            offsets = offsets_of(sizes, cost.device)
        limited = extend_batch(cost, offsets, max_targets, groups, cost_limit)
        cost = limited.cost
    index, *duals = _batch_linear_sum_assignment(
        cost,
        sizes,
        offsets,
        max_targets,
        groups,
        num_threads,
        return_duals,
        on_error,
        backend=backend,
        feature="duals" if return_duals else None,
        work=Work(cost.shape[0] * groups * num_images, max_targets, cost.shape[2] // groups),
    )
    if limited is not None:
        index, unassigned = limited.restore_index(index)
        if return_duals:
            duals[:] = limited.restore_duals(duals[0], duals[1], unassigned)
    index = index if groups > 1 else index[:, 0]
    if not return_duals:
        return index
    u, v = duals
    return Assignment(index, u if groups > 1 else u[:, 0], v)


def as_sizes(targets_or_sizes: Targets | Sequence[int]) -> list[int]:
    """Return the number of targets of each image."""
    if isinstance(targets_or_sizes, Targets):
        return targets_or_sizes.sizes
    sizes = list(targets_or_sizes) if isinstance(targets_or_sizes, Iterable) else None
    if sizes is None or any(isinstance(n, Mapping) for n in sizes):
        raise TypeError(
            "expected Targets, which Targets.from_list(...) builds, or the number of targets of each image, "
            f"got {type(targets_or_sizes).__name__}"
        )
    return [as_integer("a number of targets", n) for n in sizes]


def check_sizes(cost: Tensor, sizes: list[int]) -> None:
    """Raise ValueError where ``cost`` [L,T,Q] does not fit the numbers of targets."""
    if sum(sizes) != cost.shape[1] or any(size < 0 for size in sizes):
        raise ValueError(f"cost must be [L,T,Q] with T the sum of the sizes {sizes}, got {list(cost.shape)}")


def _problems(
    cost: Tensor, targets_or_sizes: Targets | Sequence[int], groups: int
) -> tuple[list[int], Tensor | None, int]:
    """Return the sizes, empty where the offsets stand for them; the offsets; and the maximum size."""
    check_tensor("cost", cost)
    if cost.dim() != 3:
        raise ValueError(f"cost must be [L,T,Q], got {list(cost.shape)}")
    if cost.is_complex():
        raise TypeError(f"cost must be real, got {cost.dtype}")
    if groups < 1 or cost.shape[2] % groups:
        raise ValueError(f"{cost.shape[2]} queries cannot be divided into {groups} groups")
    if not isinstance(targets_or_sizes, Targets):
        sizes = as_sizes(targets_or_sizes)
        check_sizes(cost, sizes)
        return sizes, None, max(sizes, default=0)
    targets = targets_or_sizes
    if targets.num_targets != cost.shape[1]:
        raise ValueError(f"cost must be [L,T,Q] of {targets.num_targets} targets, got {list(cost.shape)}")
    # torch.compile would guard on every size that is read.
    return [] if targets.padded or is_tracing(cost) else targets.sizes, targets.offsets, targets.max_targets


def _threads_from_environment() -> int:
    value = from_environment(THREADS, _threads_key)
    if value is None:
        return 1
    if not value.isdecimal():
        raise ValueError(f"{THREADS} must be a number, got {value!r}")
    return int(value)


_threads_from_environment._dynamo_marked_constant = True  # type: ignore[attr-defined]  # see Op.choose_name


def solve_on_host(solve_batch: Callable[..., HostAnswer]) -> Callable[..., list[Tensor]]:
    """Make the op's function, for tensors on any device, of a solver that takes a NumPy array."""

    def run(
        cost: Tensor,  # [L,T,Q]
        sizes: list[int],
        offsets: Tensor | None,
        max_targets: int,
        groups: int,
        num_threads: int,
        return_duals: bool,
        on_error: str,
    ) -> list[Tensor]:
        if offsets is not None and not sizes:
            sizes = offsets.diff().tolist()
        num_unused = cost.shape[1] - sum(sizes)  # rows of a padded batch that belong to no target
        used = cost[:, :-num_unused] if num_unused else cost
        *arrays, failures = solve_batch(as_array(_to_host(used)), sizes, groups, num_threads, return_duals)
        if failures and on_error == "raise":
            raise ValueError(failures[0])
        if num_unused:
            padding = ((0, 0), (0, 0), (0, num_unused))
            arrays[:2] = (
                None if x is None else np.pad(x, padding, constant_values=fill)
                for x, fill in zip(arrays[:2], (-1, 0), strict=True)
            )
        return [_to_device(torch.from_numpy(x), cost.device) for x in arrays if x is not None]

    return run


def _to_host(cost: Tensor) -> Tensor:
    """Return the cost on the CPU, from a GPU in one copy through pinned memory."""
    if cost.device.type != "cuda":
        return cost
    host = torch.empty_like(cost, device="cpu", pin_memory=True)
    host.copy_(cost, non_blocking=True)
    torch.cuda.current_stream(cost.device).synchronize()
    return host


def _to_device(answer: Tensor, device: torch.device) -> Tensor:
    """Return the answer on ``device``; the copy to a GPU does not block."""
    if device.type != "cuda":
        return answer.to(device)
    return answer.pin_memory().to(device, non_blocking=True)


def solve_each(
    solve_matrix: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None, np.ndarray | None]],
    cost: np.ndarray,
    sizes: list[int],
    groups: int,
    return_duals: bool,
) -> HostAnswer:
    """Solve problem after problem.

    Args:
        solve_matrix: from the costs of one problem [Q,T] to the target of each query, -1 for none, and the duals of
            the queries and of the targets, or None; it raises ValueError where there is no assignment.
        cost: [L,T,Q].
        sizes: number of targets of each image.
        groups: number of query groups in Q.
        return_duals: whether ``solve_matrix`` returns duals, and so does this function.
    """
    num_layers, num_targets, num_queries = cost.shape
    index = np.full((num_layers, groups, num_targets), -1, dtype=np.int64)
    u, v = np.zeros(index.shape), np.zeros((num_layers, len(sizes), num_queries))
    failures = []
    group_size = num_queries // groups
    for layer in range(num_layers):
        for group in range(groups):
            queries = slice(group * group_size, (group + 1) * group_size)
            start = 0
            for image, size in enumerate(sizes):
                targets = slice(start, start + size)
                problem = cost[layer, targets, queries]
                try:
                    target_of_query, v_of_problem, u_of_problem = solve_matrix(problem.T)
                except ValueError:
                    failures.append(_describe_problem(problem, layer, image))
                else:
                    (query,) = (target_of_query >= 0).nonzero()
                    index[layer, group, start + target_of_query[query]] = queries.start + query
                    if return_duals:
                        u[layer, group, targets], v[layer, image, queries] = u_of_problem, v_of_problem
                start += size
    return index, u if return_duals else None, v if return_duals else None, failures


def _describe_problem(problem: np.ndarray, layer: int, image: int) -> str:
    """Say why a problem [T,Q] has no assignment."""
    invalid = (np.isnan(problem) | (problem == -np.inf)).any(1)
    targets = (invalid if invalid.any() else (problem == np.inf).all(1)).nonzero()[0]
    return describe_failure(bool(invalid.any()), layer, image, int(targets[0]) if len(targets) else -1)


def describe_failure(invalid: bool, layer: int, image: int, target: int) -> str:
    """Say which problem has no assignment, and why; ``target`` is the first that causes it, -1 if none does alone."""
    where = f"layer {layer}, image {image}" + (f", target {target}" if target >= 0 else "")
    if invalid:
        return f"{where}: the matching cost contains NaN or -inf; were the model's logits and boxes finite?"
    return f"{where}: the cost matrix is infeasible, too many pairs are forbidden by +inf"


def _fake(
    cost: Tensor, sizes: list[int], offsets: Tensor | None, max_targets: int, groups: int, *options: Any
) -> list[Tensor]:
    _, return_duals, _ = options
    layers, targets, queries = cost.shape
    index = cost.new_empty((layers, groups, targets), dtype=torch.int64)
    if not return_duals:
        return [index]
    images = len(sizes) if offsets is None else offsets.shape[0] - 1
    duals = [(layers, groups, targets), (layers, images, queries)]
    return [index, *(cost.new_empty(shape, dtype=torch.float64) for shape in duals)]


@solve_on_host
def _solve_batch(cost: np.ndarray, sizes: list[int], groups: int, num_threads: int, return_duals: bool) -> HostAnswer:
    def solve_matrix(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        target_of_query, v, u = solve(torch.from_numpy(matrix.astype(np.float64)))
        return target_of_query.numpy(), v.numpy(), u.numpy()

    return solve_each(solve_matrix, cost, sizes, groups, return_duals)


@register_op(fake=_fake)
def _batch_linear_sum_assignment(
    cost: Tensor,
    sizes: list[int],
    offsets: Tensor | None,
    max_targets: int,
    groups: int,
    num_threads: int,
    return_duals: bool,
    on_error: str,
) -> list[Tensor]:
    return _solve_batch(cost, sizes, offsets, max_targets, groups, num_threads, return_duals, on_error)

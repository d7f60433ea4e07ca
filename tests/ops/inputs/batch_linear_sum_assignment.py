from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from detr_fast.ops.cost_limit import extend_batch
from detr_fast.ops.targets import offsets_of
from tests.ops.inputs import Case, CompileCase, Rng, integer

FAMILIES: dict[str, Callable[[Rng, tuple[int, ...]], Tensor]] = {
    "uniform": lambda rng, shape: torch.rand(shape, generator=rng, dtype=torch.float64),
    "negative": lambda rng, shape: -torch.rand(shape, generator=rng, dtype=torch.float64),
    "integer ties": lambda rng, shape: torch.randint(3, shape, generator=rng).double(),
    "all equal": lambda rng, shape: torch.full(shape, 0.75, dtype=torch.float64),
    "near ties": lambda rng, shape: 1 + 1e-6 * torch.randint(4, shape, generator=rng).double(),
    "blocks": lambda rng, shape: 1e4 * torch.randint(2, shape, generator=rng) + torch.rand(shape, generator=rng),
    "contended": lambda rng, shape: torch.rand(shape[-1], generator=rng) + 0.01 * torch.rand(shape, generator=rng),
    "forbidden": lambda rng, shape: forbid(torch.rand(shape, generator=rng, dtype=torch.float64), rng),
}
# In thirds, rounded to float64: the dual of a column rises by rounding, so that the cheapest column of the third row is
# no longer the nearest.
ROUNDED_DUALS = [[4, 4, 3, 3], [2, 3, 1, 2], [2, 2, 2, 3]]
SIZES = {
    "fewer, as many and more targets": ([3, 0, 6, 11, 1], 6, 1),
    "one": ([1], 1, 1),
    "groups": ([4, 0, 8, 1], 6, 3),
    "no target": ([0, 0], 5, 1),
    "no image": ([], 5, 1),
    "no query": ([3], 0, 1),
}


def conformance_cases() -> Iterator[Case]:
    for name in FAMILIES:
        yield Case(name, lambda dtype, rng, name=name: arguments(dtype, rng, 2, *SIZES["groups"], name))
    for name, sizes in SIZES.items():
        yield Case(name, lambda dtype, rng, sizes=sizes: arguments(dtype, rng, 2, *sizes, "uniform"))
    yield Case("no layer", lambda dtype, rng: arguments(dtype, rng, 0, [3], 5, 1, "uniform"))
    yield Case("strided", _strided)
    yield Case("padded", _padded)
    yield Case("rounded duals", _rounded_duals)
    yield Case("infeasible and marked", _infeasible)
    yield Case("with a limit of the costs", _limited)
    for number in range(4):
        yield Case(f"random {number}", _random)


def forbid(cost: Tensor, rng: Rng) -> Tensor:
    """Forbid a fifth of the pairs by +inf, but none of the diagonals of the first and last targets."""
    forbidden = cost.where(torch.rand(cost.shape, generator=rng) > 0.2, torch.inf)
    queries = cost.shape[-1]
    for start in range(cost.shape[1]):
        forbidden[:, start, start % queries] = cost[:, start, start % queries]
    return forbidden


def arguments(
    dtype: torch.dtype, rng: Rng, layers: int, sizes: list[int], queries: int, groups: int, family: str
) -> tuple[Any, ...]:
    cost = FAMILIES[family](rng, (layers, sum(sizes), groups * queries)).to(dtype)
    return cost, sizes, None, max(sizes, default=0), groups, 1, False, "mark"


def _strided(dtype: torch.dtype, rng: Rng) -> tuple[Any, ...]:
    cost, *rest = arguments(dtype, rng, 2, [2, 4], 20, 1, "uniform")
    return cost.transpose(1, 2).contiguous().transpose(1, 2), *rest


def _padded(dtype: torch.dtype, rng: Rng) -> tuple[Any, ...]:
    """Two rows of the cost belong to no target."""
    cost, *_ = arguments(dtype, rng, 2, [2, 3, 2], 5, 1, "uniform")
    return cost, [], offsets_of([2, 3], cost.device), 5, 1, 1, False, "mark"


def _rounded_duals(dtype: torch.dtype, rng: Rng) -> tuple[Any, ...]:
    cost = (torch.tensor(ROUNDED_DUALS, dtype=torch.float64) / 3).to(dtype)
    return cost[None], [3], None, 3, 1, 1, False, "mark"


def _infeasible(dtype: torch.dtype, rng: Rng) -> tuple[Any, ...]:
    cost, *rest = arguments(dtype, rng, 2, [3, 3, 2], 6, 1, "uniform")
    cost[0, 0, 0] = torch.nan
    cost[1, 3:6, 1:] = torch.inf
    return cost, *rest


def _limited(dtype: torch.dtype, rng: Rng) -> tuple[Any, ...]:
    cost, sizes, _, max_targets, groups, *options = arguments(dtype, rng, 2, [4, 0, 8, 1], 6, 2, "forbidden")
    cost[0, 2] = torch.inf  # a target that has to stay unassigned
    offsets = offsets_of(sizes, cost.device)
    limited = extend_batch(cost, offsets, max_targets, groups, 0.3)
    return limited.cost.to(dtype), sizes, offsets, max_targets, groups, *options


def _random(dtype: torch.dtype, rng: Rng) -> tuple[Any, ...]:
    sizes = [integer(rng, 0, 14) for _ in range(integer(rng, 1, 5))]
    family = list(FAMILIES)[integer(rng, 0, len(FAMILIES) - 1)]
    return arguments(dtype, rng, integer(rng, 1, 2), sizes, integer(rng, 1, 12), integer(rng, 1, 2), family)


def compile_cases() -> Iterator[CompileCase]:
    for max_targets, queries, registers in (
        (20, 100, 208),
        (100, 100, 208),
        (100, 300, 208),
        (300, 300, 208),
        (63, 900, 232),
        (300, 900, 232),
    ):
        call = arguments(torch.float32, torch.Generator(), 6, [max_targets, 7], queries, 1, "uniform")
        name = f"{max_targets} targets of {queries} queries"
        yield CompileCase(name, call, {"batch_linear_sum_assignment_kernel": registers})

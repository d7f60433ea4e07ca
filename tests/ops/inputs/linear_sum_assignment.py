from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from detr_fast.ops.cost_limit import extend_matrix
from tests.ops.inputs import Case, Rng, integer
from tests.ops.inputs.batch_linear_sum_assignment import FAMILIES, ROUNDED_DUALS


def conformance_cases() -> Iterator[Case]:
    for name in FAMILIES:
        for shape in ((7, 12), (12, 7), (9, 9)):
            for maximize in (False, True):
                yield Case(
                    f"{name}, {shape}, {'maximize' if maximize else 'minimize'}",
                    lambda dtype, rng, name=name, shape=shape, maximize=maximize: _arguments(
                        dtype, rng, name, shape, maximize
                    ),
                )
    for shape in ((0, 3), (3, 0), (1, 1), (1, 5)):
        yield Case(f"shape {shape}", lambda dtype, rng, shape=shape: _arguments(dtype, rng, "uniform", shape, False))
    yield Case(
        "rounded duals",
        lambda dtype, rng: ((torch.tensor(ROUNDED_DUALS, dtype=torch.float64) / 3).to(dtype), False),
    )
    for shape in ((7, 12), (12, 7)):
        yield Case(f"with a limit, {shape}", lambda dtype, rng, shape=shape: _limited(dtype, rng, shape))
    for number in range(4):
        yield Case(
            f"random {number}",
            lambda dtype, rng: _arguments(
                dtype, rng, "integer ties", (integer(rng, 1, 30), integer(rng, 1, 30)), False
            ),
        )


def _arguments(dtype: torch.dtype, rng: Rng, family: str, shape: tuple[int, int], maximize: bool) -> tuple[Any, ...]:
    cost = FAMILIES[family](rng, (1, *shape))[0].to(dtype)
    return (-cost if maximize and family == "forbidden" else cost), maximize


def _limited(dtype: torch.dtype, rng: Rng, shape: tuple[int, int]) -> tuple[Any, ...]:
    cost, maximize = _arguments(torch.float64, rng, "forbidden", shape, False)
    return torch.from_numpy(extend_matrix(cost.numpy(), 0.3)).to(dtype), maximize

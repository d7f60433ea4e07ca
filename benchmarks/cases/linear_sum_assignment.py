"""One assignment problem in one call with SciPy's signature; the times are those of several problems of one shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch

from benchmarks.clock import Protocol
from benchmarks.inputs import COSTS, random_targets
from benchmarks.peers import import_peer
from benchmarks.registry import Case, Goal, Implementation, backends, default_backend
from detr_fast import ops

SHAPES = ((20, 5), (100, 7), (100, 20), (100, 100), (300, 20), (300, 100), (300, 300), (900, 63), (900, 300))
SIZES = [*product((*COSTS, "ties"), SHAPES, ("cold", "hot"))]
SMALL = [("untrained", (9, 4), "hot"), ("ties", (3, 5), "cold")]
DEVICES = ("cpu",)

Matrices = list[np.ndarray]  # float32 [Q,t] each


def case(device: torch.device, costs: str, shape: tuple[int, int], protocol: Protocol) -> Case:
    queries, targets = shape
    # A cold call is the first after a flush, and therefore the only one.
    count = 1 if protocol == "cold" else 20 if queries * targets < 10_000 else 4

    def inputs() -> Matrices:
        generator = torch.Generator().manual_seed(0)
        make = COSTS["untrained" if costs == "ties" else costs]
        drawn = [make(1, queries, random_targets([targets], generator), generator)[0].T for _ in range(count)]
        return [(cost.mul(2).round() if costs == "ties" else cost).contiguous().numpy() for cost in drawn]

    def solve_all(matrices: Matrices, backend: str) -> list[Any]:
        return [ops.OPS["linear_sum_assignment"](matrix, False, backend=backend) for matrix in matrices]

    exclude = ("reference",) if queries * targets > 100 else ()  # a loop in Python
    own = backends("linear_sum_assignment", device, solve_all, exclude)
    return Case(
        f"{count} {'problem' if count == 1 else 'problems'}, {queries} queries x {targets} targets, {costs}",
        default_backend("linear_sum_assignment", device),
        inputs,
        {name: partial(with_totals, prepare) for name, prepare in {**own, **PEERS}.items()},
        expected,
        rtol=1e-6,
        atol=0,
        goals=(Goal("ratio", 1, "scipy"),) if queries >= 100 else (),
        protocol=protocol,
    )


def expected(matrices: Matrices) -> list[float]:
    solve = import_peer("scipy", "scipy.optimize").linear_sum_assignment
    return [float(matrix[solve(matrix)].sum(dtype=np.float64)) for matrix in matrices]


def with_totals(prepare: Callable[[Matrices], Implementation], matrices: Matrices) -> Implementation:
    """Return an implementation whose answers are compared by their costs."""

    def totals(answers: list[tuple[np.ndarray, np.ndarray]]) -> list[float]:
        pairs = zip(matrices, answers, strict=True)
        return [float(matrix[rows, cols].sum(dtype=np.float64)) for matrix, (rows, cols) in pairs]

    return Implementation(prepare(matrices).call, totals)


def lapx(function: str, matrices: Matrices) -> Implementation:
    """Prepare a solver of lapx; one of them returns pairs instead of two arrays."""
    solve = partial(getattr(import_peer("lap"), function), extend_cost=True, return_cost=False)
    if function == "lapjvxa":
        return Implementation(lambda: [solve(matrix).T for matrix in matrices])
    return Implementation(lambda: [solve(matrix) for matrix in matrices])


PEERS = {f"lapx {name}": partial(lapx, name) for name in ("lapjvh", "lapjvs", "lapjvxa")}

"""The Triton solver against the C++ solver with its transfers: where the choice between them changes."""

from __future__ import annotations

from itertools import product

import torch

from benchmarks.cases.batch_linear_sum_assignment import solvers
from benchmarks.inputs import COSTS, random_targets
from benchmarks.registry import Case
from benchmarks.solver_peers import Problems

SIZES = [
    (costs, images, targets, queries)
    for costs, queries, targets, images in product(COSTS, (100, 300, 900), (10, 100, 300), (12, 48, 192))
    if targets <= queries
]
SMALL = [("untrained", 2, 4, 9)]
DEVICES = ("cuda",)


def case(device: torch.device, costs: str, images: int, targets: int, queries: int) -> Case:
    def inputs() -> Problems:
        generator = torch.Generator().manual_seed(0)
        truth = random_targets([targets] * images, generator)
        return Problems.of(COSTS[costs](1, queries, truth, generator), truth, device)

    return Case(
        f"{images} problems, {queries} queries x {targets} targets, {costs}",
        "triton",
        inputs,
        {name: prepare for name, prepare in solvers(device).items() if name in ("triton", "cpp")},
        lambda problems: problems.total_of_index(problems.scipy_index),
        rtol=1e-6,
        atol=0,
    )

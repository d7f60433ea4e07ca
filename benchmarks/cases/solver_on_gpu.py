"""Problems of equal size on a GPU: Triton, C++ with its transfers, and torch-hungarian, which then needs no padding."""

from __future__ import annotations

from itertools import product

import torch

from benchmarks.cases.batch_linear_sum_assignment import solvers
from benchmarks.inputs import COSTS, random_targets
from benchmarks.registry import Case, Goal
from benchmarks.solver_peers import Problems, torch_hungarian

FASTER = {100: 5, 300: 2, 600: 5}  # than torch-hungarian on uniform costs, by the number of targets
SIZES = [
    *(("uniform", 208, targets, 300) for targets in FASTER),
    *(
        (costs, images, targets, queries)
        for costs, queries, targets, images in product(COSTS, (100, 300, 900), (10, 100, 300), (12, 48, 192))
        if targets <= queries
    ),
]
SMALL = [("uniform", 2, 3, 5), ("uniform", 2, 7, 5), ("untrained", 2, 4, 9)]
DEVICES = ("cuda",)


def case(device: torch.device, costs: str, images: int, targets: int, queries: int) -> Case:
    def inputs() -> Problems:
        generator = torch.Generator().manual_seed(0)
        truth = random_targets([targets] * images, generator)
        if costs == "uniform":
            return Problems.of(torch.rand(1, images * targets, queries, generator=generator), truth, device)
        return Problems.of(COSTS[costs](1, queries, truth, generator), truth, device)

    own = {name: prepare for name, prepare in solvers(device).items() if name in ("triton", "cpp")}
    return Case(
        f"{images} problems, {queries} queries x {targets} targets, {costs}",
        "triton",
        inputs,
        {**own, "torch-hungarian": torch_hungarian},
        lambda problems: problems.total_of_index(problems.scipy_index),
        rtol=1e-6,
        atol=0,
        goals=(Goal("ratio", FASTER.get(targets, 1), "torch-hungarian"),) if costs == "uniform" else (),
    )

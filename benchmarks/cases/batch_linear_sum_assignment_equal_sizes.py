"""Many assignment problems of equal size on a GPU, where torch-hungarian needs no padding."""

from __future__ import annotations

import torch

from benchmarks.cases.batch_linear_sum_assignment import solvers
from benchmarks.inputs import random_targets
from benchmarks.registry import Case, Goal
from benchmarks.solver_peers import Problems, torch_hungarian

FASTER = {100: 5, 300: 2, 600: 5}  # targets: the goal
SIZES = [(208, targets, 300) for targets in FASTER]
SMALL = [(2, 3, 5), (2, 7, 5)]
DEVICES = ("cuda",)


def case(device: torch.device, images: int, targets: int, queries: int) -> Case:
    def inputs() -> Problems:
        generator = torch.Generator().manual_seed(0)
        cost = torch.rand(1, images * targets, queries, generator=generator)
        return Problems.of(cost, random_targets([targets] * images, generator), device)

    return Case(
        f"{images} problems, {queries} queries x {targets} targets, uniform",
        "triton",
        inputs,
        {"triton": solvers(device)["triton"], "torch-hungarian": torch_hungarian},
        lambda problems: problems.total_of_index(problems.scipy_index),
        rtol=1e-6,
        atol=0,
        goals=tuple(Goal("ratio", bound, "torch-hungarian") for size, bound in FASTER.items() if size == targets),
    )

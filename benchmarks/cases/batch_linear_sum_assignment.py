"""The assignment problems of a training step in one call, on the costs of an untrained and of a trained model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.clock import Protocol
from benchmarks.inputs import COSTS, coco_like_sizes, random_targets
from benchmarks.registry import Case, Goal, Implementation, backends, default_backend
from benchmarks.solver_peers import PEERS, Problems
from detr_fast import ops

NAME = "batch_linear_sum_assignment"
STEPS = ((1, 4, 50), (6, 16, 100), (4, 16, 300), (7, 8, 900))  # layers, images, queries
SIZES = [(costs, *step, protocol) for costs in COSTS for step in STEPS for protocol in ("cold", "hot")]
SMALL = [("untrained", 1, 2, 20, "cold"), ("trained", 2, 2, 5, "hot")]  # the second with more targets than queries


def case(device: torch.device, costs: str, layers: int, images: int, queries: int, protocol: Protocol) -> Case:
    def inputs() -> Problems:
        generator = torch.Generator().manual_seed(1)
        targets = random_targets(coco_like_sizes(images, generator), generator)
        return Problems.of(COSTS[costs](layers, queries, targets, generator), targets, device)

    on_cuda = device.type == "cuda"
    exclude = ("reference",) if on_cuda or queries >= 100 else ()  # it is a loop in Python
    goals: tuple[Goal, ...] = ()
    if not on_cuda and queries >= 100:
        goals = (Goal("ratio", 3, "facebookresearch/detr"),)
    elif on_cuda and (costs, queries) == ("trained", 100):
        goals = (Goal("us", 100), Goal("ratio", 1, "cpp"))
    return Case(
        f"{layers * images} problems, {queries} queries, {costs}",
        default_backend(NAME, device),
        inputs,
        {**solvers(device, exclude), **({} if on_cuda else variants()), **PEERS},
        lambda problems: problems.total_of_index(problems.scipy_index),
        rtol=1e-6,
        atol=0,
        goals=goals,
        protocol=protocol,
    )


def solve(problems: Problems, backend: str, num_threads: int = 1) -> Tensor:
    """Solve all problems; on a GPU a backend of the host copies the cost and the answer."""
    return ops.batch_linear_sum_assignment(problems.cost, problems.targets, num_threads=num_threads, backend=backend)


def checked(problems: Problems, index: Tensor) -> float:
    """Return the total cost of an answer, which must be SciPy's index by index."""
    torch.testing.assert_close(index.cpu(), problems.scipy_index, rtol=0, atol=0)
    return problems.total_of_index(index)


def solvers(device: torch.device, exclude: tuple[str, ...] = ()) -> dict[str, Callable[[Problems], Implementation]]:
    """Return the backends, with their answers checked index by index."""

    def prepare(backend: Callable[[Problems], Implementation], problems: Problems) -> Implementation:
        return Implementation(backend(problems).call, partial(checked, problems))

    found = backends(NAME, device, solve, exclude)
    return {name: partial(prepare, backend) for name, backend in found.items()}


def variants() -> dict[str, Callable[[Problems], Implementation]]:
    """Return the C++ solver with two threads, and followed by the index tensors that DETR's matcher returns."""

    def two_threads(problems: Problems) -> Implementation:
        return Implementation(lambda: solve(problems, "cpp", num_threads=2), partial(checked, problems))

    def pairs(problems: Problems) -> Implementation:
        return Implementation(
            lambda: ops.matched_pairs(solve(problems, "cpp"), problems.targets),
            lambda layers: problems.total_of_pairs(pair for layer in layers for pair in layer),
        )

    return {"cpp (2 threads)": two_threads, "cpp (then matched_pairs)": pairs}

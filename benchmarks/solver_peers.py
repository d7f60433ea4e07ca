"""Other solvers of the linear sum assignment, each given the problems of a training step in the form it prefers.

All of them solve the same costs with one thread. What a solver needs prepared (float64, problems grouped by shape) is
prepared before it is timed. Their answers are compared by the total cost of all problems.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import detr_idiom
from benchmarks.peers import import_peer
from benchmarks.registry import Implementation, Unavailable
from detr_fast import Targets


@dataclass(frozen=True)
class Problems:
    """The problems of a step: the packed cost, and each problem's matrix [Q,t] by itself on the host."""

    cost: Tensor  # [L,T,Q]
    targets: Targets
    matrices: list[np.ndarray]

    @classmethod
    def of(cls, cost: Tensor, targets: Targets, device: torch.device) -> Problems:
        """Build them from a cost and targets on the CPU."""
        blocks = [block.T for layer in cost for block in layer.split(targets.sizes)]
        return cls(cost.to(device), targets.to(device), [np.ascontiguousarray(block.numpy()) for block in blocks])

    def by_shape(self) -> list[np.ndarray]:
        """Return the matrices of equal shape, stacked: [n,Q,t] each."""
        groups = defaultdict(list)
        for matrix in self.matrices:
            groups[matrix.shape].append(matrix)
        return [np.stack(group) for group in groups.values() if group[0].size]

    @cached_property
    def scipy_index(self) -> Tensor:
        """SciPy's answer in the form of the batched solver's, int64 [L,T]."""
        solve = import_peer("scipy", "scipy.optimize").linear_sum_assignment
        answers = []
        for matrix in self.matrices:
            query, target = solve(matrix)
            answer = np.full(matrix.shape[1], -1)
            answer[target] = query
            answers.append(answer)
        return torch.from_numpy(np.concatenate(answers)).view(self.cost.shape[:2])

    def total_of_index(self, index: Tensor) -> float:
        """Return the cost of an answer of the batched solver's form."""
        index = index.to(self.cost.device)
        matched = self.cost.double().gather(2, index.clamp(min=0)[..., None])[..., 0]
        return float(matched.where(index >= 0, 0).sum())

    def total_of_pairs(self, pairs: Iterable[tuple[Any, Any]]) -> float:
        """Return the cost of the matched queries and targets of each problem."""
        return sum(_total(*problem) for problem in zip(self.matrices, pairs, strict=True))


def _total(matrix: np.ndarray, pairs: tuple[Any, Any]) -> float:
    query, target = pairs
    return float(matrix[np.asarray(query), np.asarray(target)].sum(dtype=np.float64))


def _total_of_stacks(stacks: list[np.ndarray], answers: list[tuple[Any, Any]]) -> float:
    """Return the cost of each stack's lists of matched queries and targets."""
    return sum(
        _total(matrix, (query, target))
        for stack, (queries, targets) in zip(stacks, answers, strict=True)
        for matrix, query, target in zip(stack, queries, targets, strict=True)
    )


def reference_code(problems: Problems) -> Implementation:
    """Prepare what DETR's matcher does from the costs on: for each layer a split, SciPy, tuples of index tensors.

    The costs between different images, which the reference code computes and discards, are not part of it.
    """
    layers, sizes = problems.cost.transpose(1, 2).contiguous(), problems.targets.sizes  # [L,Q,T]
    return Implementation(
        lambda: [detr_idiom.assign(layer.split(sizes, -1)) for layer in layers],
        lambda answers: problems.total_of_pairs(pair for layer in answers for pair in layer),
    )


def scipy_loop(problems: Problems) -> Implementation:
    """Prepare a loop over SciPy's function."""
    solve = import_peer("scipy", "scipy.optimize").linear_sum_assignment
    matrices = [matrix.astype(np.float64) for matrix in problems.matrices]
    return Implementation(lambda: [solve(matrix) for matrix in matrices], problems.total_of_pairs)


def lapjvh_loop(problems: Problems) -> Implementation:
    """Prepare a loop over lapx's solver of rectangular problems."""
    solve = partial(import_peer("lap").lapjvh, extend_cost=True, return_cost=False)
    return Implementation(lambda: [solve(matrix) for matrix in problems.matrices], problems.total_of_pairs)


def batched(module: str, function: str, problems: Problems) -> Implementation:
    """Prepare a solver that takes problems of equal shape in one call."""
    solve = partial(getattr(import_peer(module), function), extend_cost=True, return_cost=False, n_threads=1)
    stacks = problems.by_shape()
    return Implementation(lambda: [solve(stack) for stack in stacks], partial(_total_of_stacks, stacks))


def py_lap_solver(problems: Problems) -> Implementation:
    """Prepare py-lap-solver's batched solver."""
    solver = import_peer("py_lap_solver", "py_lap_solver.solvers").BatchedScipySolver(use_openmp=False)
    stacks = problems.by_shape()

    def total(answers: list[np.ndarray]) -> float:
        matched = [([np.flatnonzero(row >= 0) for row in a], [row[row >= 0] for row in a]) for a in answers]
        return _total_of_stacks(stacks, matched)

    return Implementation(lambda: [solver.batch_solve(stack) for stack in stacks], total)


def torch_hungarian(problems: Problems) -> Implementation:
    """Prepare torch-hungarian, which runs on the device of the cost, in the layout that it does not copy."""
    solve = import_peer("torch_linear_assignment").batch_linear_assignment
    stacks = problems.by_shape()  # [n,Q,t]
    wide = [
        torch.from_numpy(stack) if stack.shape[1] < stack.shape[2] else torch.from_numpy(stack).mT for stack in stacks
    ]
    tensors = [stack.contiguous().to(problems.cost.device) for stack in wide]

    def total(answers: list[Tensor]) -> float:
        columns = (answer.cpu()[..., None] for answer in answers)
        costs = (
            stack.double().gather(2, column.clamp(min=0)).where(column >= 0, 0).sum()
            for stack, column in zip(wide, columns, strict=True)
        )
        return float(sum(costs))

    return Implementation(lambda: [solve(tensor) for tensor in tensors], total)


def on_host(prepare: Callable[[Problems], Implementation], problems: Problems) -> Implementation:
    """Prepare a solver that takes its problems from the host.

    Raises:
        Unavailable: The cost is on a GPU.
    """
    if problems.cost.device.type != "cpu":
        raise Unavailable("it runs on the CPU only")
    return prepare(problems)


PEERS: dict[str, Callable[[Problems], Implementation]] = {
    "facebookresearch/detr": partial(on_host, reference_code),
    "SciPy (loop)": partial(on_host, scipy_loop),
    "lapx lapjvh (loop)": partial(on_host, lapjvh_loop),
    "lapx lapjvh (batched)": partial(on_host, partial(batched, "lap", "lapjvh_batch")),
    "lapx lapjvs (batched)": partial(on_host, partial(batched, "lap", "lapjvs_batch")),
    "lapcpp (batched)": partial(on_host, partial(batched, "lapcpp", "lapjv_batch")),
    "py-lap-solver": partial(on_host, py_lap_solver),
    "torch-hungarian": torch_hungarian,
}

"""The solvers that can be installed, each taking a training step's problems in the form that suits it best.

All of them solve the same costs on one thread. What a peer needs prepared (float64, groups of equal shape) is
prepared before the clock starts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from detr_fast import ops


@dataclass(frozen=True)
class Solver:
    """Ready to be timed."""

    solve: Callable[[], Any]
    total: Callable[[Any], float]  # what its answer costs, summed over all problems


@dataclass(frozen=True)
class Problems:
    """A step's problems: the packed cost, and each problem's matrix [queries, targets] by itself."""

    cost: Tensor  # [L,T,Q]
    sizes: list[int]
    matrices: list[np.ndarray]

    @classmethod
    def of(cls, cost: Tensor, sizes: list[int]) -> Problems:
        blocks = [block.T for layer in cost for block in layer.split(sizes)]
        return cls(cost, sizes, [np.ascontiguousarray(block.numpy()) for block in blocks])

    def by_shape(self) -> list[np.ndarray]:
        """The matrices of equal shape, stacked: [n, queries, targets] each."""
        groups = defaultdict(list)
        for matrix in self.matrices:
            groups[matrix.shape].append(matrix)
        return [np.stack(group) for group in groups.values() if group[0].size]

    def total_of_pairs(self, pairs: Iterable[tuple[Any, Any]]) -> float:
        """Of each problem's matched queries and targets."""
        return sum(
            float(matrix[np.asarray(query), np.asarray(target)].sum(dtype=np.float64))
            for matrix, (query, target) in zip(self.matrices, pairs, strict=True)
        )


def total_of_stacks(stacks: list[np.ndarray], answers: list[tuple[Any, Any]]) -> float:
    """Of each stack's lists of matched queries and targets."""
    return sum(
        float(matrix[query, target].sum(dtype=np.float64))
        for stack, (queries, targets) in zip(stacks, answers, strict=True)
        for matrix, query, target in zip(stack, queries, targets, strict=True)
    )


def ours(problems: Problems, num_threads: int = 1) -> Solver:
    def total(index: Tensor) -> float:
        matched = problems.cost.double().gather(2, index.clamp(min=0)[..., None])[..., 0]
        return float(matched.where(index >= 0, 0).sum())

    return Solver(
        lambda: ops.batch_linear_sum_assignment(problems.cost, problems.sizes, num_threads=num_threads), total
    )


def ours_on_two_threads(problems: Problems) -> Solver:
    return ours(problems, num_threads=2)


def ours_with_pairs(problems: Problems) -> Solver:
    """With DETR's tuples of index tensors for each image."""
    solve = ours(problems).solve
    return Solver(
        lambda: ops.matched_pairs(solve(), problems.sizes),
        lambda layers: problems.total_of_pairs(pair for layer in layers for pair in layer),
    )


def detr_idiom(problems: Problems) -> Solver:
    """What DETR's matcher does from the costs on: per layer a split, SciPy for each image, tuples of tensors.

    It is spared the costs between different images, which the original computes and throws away.
    """

    def one(block: Tensor) -> tuple[Tensor, Tensor]:
        rows, cols = scipy.optimize.linear_sum_assignment(block)
        return torch.as_tensor(rows, dtype=torch.int64), torch.as_tensor(cols, dtype=torch.int64)

    layers = problems.cost.transpose(1, 2).contiguous()  # [L,Q,T]
    return Solver(
        lambda: [[one(block) for block in layer.split(problems.sizes, -1)] for layer in layers],
        lambda answer: problems.total_of_pairs(pair for layer in answer for pair in layer),
    )


def scipy_loop(problems: Problems) -> Solver:
    matrices = [matrix.astype(np.float64) for matrix in problems.matrices]
    return Solver(
        lambda: [scipy.optimize.linear_sum_assignment(matrix) for matrix in matrices], problems.total_of_pairs
    )


def lapjvh_loop(problems: Problems) -> Solver:
    import lap

    return Solver(
        lambda: [lap.lapjvh(matrix, extend_cost=True, return_cost=False) for matrix in problems.matrices],
        problems.total_of_pairs,
    )


def lapjvh_batch(problems: Problems) -> Solver:
    import lap

    stacks = problems.by_shape()
    return Solver(
        lambda: [lap.lapjvh_batch(stack, extend_cost=True, return_cost=False, n_threads=1) for stack in stacks],
        lambda answers: total_of_stacks(stacks, answers),
    )


def lapjvs_batch(problems: Problems) -> Solver:
    import lap

    stacks = problems.by_shape()
    return Solver(
        lambda: [lap.lapjvs_batch(stack, extend_cost=True, return_cost=False, n_threads=1) for stack in stacks],
        lambda answers: total_of_stacks(stacks, answers),
    )


def lapcpp_batch(problems: Problems) -> Solver:
    from lapcpp import lapjv_batch

    stacks = problems.by_shape()
    return Solver(
        lambda: [lapjv_batch(stack, extend_cost=True, return_cost=False, n_threads=1) for stack in stacks],
        lambda answers: total_of_stacks(stacks, answers),
    )


def py_lap_solver(problems: Problems) -> Solver:
    from py_lap_solver.solvers import BatchedScipySolver

    solver, stacks = BatchedScipySolver(use_openmp=False), problems.by_shape()

    def total(answers: list[np.ndarray]) -> float:
        matched = [([np.flatnonzero(row >= 0) for row in a], [row[row >= 0] for row in a]) for a in answers]
        return total_of_stacks(stacks, matched)

    return Solver(lambda: [solver.batch_solve(stack) for stack in stacks], total)


def torch_hungarian(problems: Problems) -> Solver:
    from torch_linear_assignment import batch_linear_assignment

    stacks = problems.by_shape()
    tensors = [torch.from_numpy(stack).transpose(1, 2) for stack in stacks]

    def total(answers: list[Tensor]) -> float:
        matched = [([row[row >= 0] for row in a.numpy()], [np.flatnonzero(row >= 0) for row in a]) for a in answers]
        return total_of_stacks(stacks, matched)

    return Solver(lambda: [batch_linear_assignment(tensor) for tensor in tensors], total)


OURS = {"ours": ours, "ours, 2 threads": ours_on_two_threads, "ours, with pairs": ours_with_pairs}
_PEERS = {  # name: (module, preparation)
    "DETR idiom": ("scipy", detr_idiom),
    "SciPy loop": ("scipy", scipy_loop),
    "lapx lapjvh, loop": ("lap", lapjvh_loop),
    "lapx lapjvh, batch": ("lap", lapjvh_batch),
    "lapx lapjvs, batch": ("lap", lapjvs_batch),
    "lapcpp, batch": ("lapcpp", lapcpp_batch),
    "py-lap-solver": ("py_lap_solver", py_lap_solver),
    "torch-hungarian": ("torch_linear_assignment", torch_hungarian),
}
PEERS = {name: prepare for name, (module, prepare) in _PEERS.items() if find_spec(module)}

"""The solvers that can be installed, each taking a training step's problems in the form that suits it best.

All of them solve the same costs on one thread. What a peer needs prepared (float64, groups of equal shape) is
prepared before the clock starts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from detr_fast import ops

Solve = Callable[[], object]


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

    def total(self, index: Tensor) -> float:
        """What an answer [L,T] costs."""
        matched = self.cost.double().gather(2, index.clamp(min=0)[..., None])[..., 0]
        return float(matched.where(index >= 0, 0).sum())


def ours(problems: Problems, num_threads: int = 1) -> Solve:
    return lambda: ops.batch_linear_sum_assignment(problems.cost, problems.sizes, num_threads=num_threads)


def ours_pairs(problems: Problems) -> Solve:
    """With DETR's tuples of index tensors for each image."""
    return lambda: ops.matched_pairs(
        ops.batch_linear_sum_assignment(problems.cost, problems.sizes, num_threads=1), problems.sizes
    )


def detr_idiom(problems: Problems) -> Solve:
    """What DETR's matcher does from the costs on: per layer a split, SciPy for each image, tuples of tensors.

    It is spared the costs between different images, which the original computes and throws away.
    """

    def one(block: Tensor) -> tuple[Tensor, Tensor]:
        rows, cols = scipy.optimize.linear_sum_assignment(block)
        return torch.as_tensor(rows, dtype=torch.int64), torch.as_tensor(cols, dtype=torch.int64)

    layers = problems.cost.transpose(1, 2).contiguous()  # [L,Q,T]
    return lambda: [[one(block) for block in layer.split(problems.sizes, -1)] for layer in layers]


def scipy_loop(problems: Problems) -> Solve:
    matrices = [matrix.astype(np.float64) for matrix in problems.matrices]
    return lambda: [scipy.optimize.linear_sum_assignment(matrix) for matrix in matrices]


def _lap(name: str) -> Callable[[Problems], Solve]:
    def prepare(problems: Problems) -> Solve:
        import lap

        solve, stacks = getattr(lap, name), problems.by_shape()
        return lambda: [solve(stack, extend_cost=True, return_cost=False, n_threads=1) for stack in stacks]

    return prepare


def lapjvh_loop(problems: Problems) -> Solve:
    import lap

    matrices = [matrix for matrix in problems.matrices if matrix.size]
    return lambda: [lap.lapjvh(matrix, extend_cost=True, return_cost=False) for matrix in matrices]


def lapcpp(problems: Problems) -> Solve:
    from lapcpp import lapjv_batch

    stacks = problems.by_shape()
    return lambda: [lapjv_batch(stack, extend_cost=True, return_cost=False, n_threads=1) for stack in stacks]


def py_lap_solver(problems: Problems) -> Solve:
    from py_lap_solver.solvers import BatchedScipySolver

    solver, stacks = BatchedScipySolver(use_openmp=False), problems.by_shape()
    return lambda: [solver.batch_solve(stack) for stack in stacks]


def torch_hungarian(problems: Problems) -> Solve:
    from torch_linear_assignment import batch_linear_assignment

    stacks = [torch.from_numpy(stack).transpose(1, 2) for stack in problems.by_shape()]
    return lambda: [batch_linear_assignment(stack) for stack in stacks]


PEERS: dict[str, tuple[str, Callable[[Problems], Solve]]] = {  # name: (module, preparation)
    "SciPy loop": ("scipy", scipy_loop),
    "lapx lapjvh": ("lap", _lap("lapjvh_batch")),
    "lapx lapjvh loop": ("lap", lapjvh_loop),
    "lapx lapjvs": ("lap", _lap("lapjvs_batch")),
    "lapx lapjvx": ("lap", _lap("lapjvx_batch")),
    "lapcpp": ("lapcpp", lapcpp),
    "py-lap-solver": ("py_lap_solver", py_lap_solver),
    "torch-hungarian": ("torch_linear_assignment", torch_hungarian),
}


def installed_peers() -> dict[str, Callable[[Problems], Solve]]:
    return {name: prepare for name, (module, prepare) in PEERS.items() if find_spec(module)}

"""Compare the solver with SciPy on very many problems: ``python -m tests.stress_linear_sum_assignment``.

Every round solves the problems of several images in one call, and each of them in a call of its own. The costs of a
round are of one family. All indices must equal those of SciPy, and all duals must prove their answers.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from benchmarks.inputs import COSTS, random_targets
from detr_fast import _C, Targets, ops

Generate = Callable[[np.random.Generator, int, int], np.ndarray]  # (rng, targets, queries) -> [targets, queries]


def _near_ties(rng: np.random.Generator, targets: int, queries: int) -> np.ndarray:
    return 1 + 1e-6 * rng.integers(0, 5, (targets, queries))


def _blocks(rng: np.random.Generator, targets: int, queries: int) -> np.ndarray:
    return 1e6 * rng.integers(0, 2, (targets, queries)) + rng.random((targets, queries))


def _rounded(rng: np.random.Generator, targets: int, queries: int) -> np.ndarray:
    return torch.from_numpy(rng.normal(size=(targets, queries))).bfloat16().double().numpy()


def _levels(rng: np.random.Generator, targets: int, queries: int) -> np.ndarray:
    return rng.random((targets, 1)) + rng.random(queries) + 1e-3 * rng.random((targets, queries))


def _forbidden(rng: np.random.Generator, targets: int, queries: int) -> np.ndarray:
    cost = np.where(
        rng.random((targets, queries)) < rng.choice([0.1, 0.5, 0.9]), np.inf, rng.random((targets, queries))
    )
    pairs = np.arange(min(targets, queries))
    cost[rng.permutation(targets)[: len(pairs)], rng.permutation(queries)[: len(pairs)]] = rng.random(len(pairs))
    return cost


GENERATED: dict[str, Generate] = {
    "uniform": lambda rng, targets, queries: rng.random((targets, queries)),
    "negative": lambda rng, targets, queries: -100 * rng.random((targets, queries)),
    "integer": lambda rng, targets, queries: rng.integers(0, rng.integers(2, 1000), (targets, queries)).astype(float),
    "all equal": lambda rng, targets, queries: np.full((targets, queries), rng.normal()),
    "near-ties": _near_ties,
    "blocks": _blocks,
    "bf16-rounded": _rounded,
    "levels": _levels,
    "forbidden": _forbidden,
}
FAMILIES = [*COSTS, *GENERATED]


def random_round(rng: np.random.Generator, family: str) -> tuple[Tensor, list[int], int]:
    """Draw costs [L,T,Q], the number of targets of each image, and the number of query groups."""
    largest = int(rng.choice([5, 12, 40, 100, 300], p=[0.3, 0.4, 0.25, 0.04, 0.01]))
    layers, groups = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    queries = int(rng.integers(1, largest + 1))
    sizes = rng.integers(0, largest + 1, rng.integers(1, 13)).tolist()
    if rng.random() < 0.3:
        sizes = [size if rng.random() < 0.5 else queries for size in sizes]
    if family in COSTS:
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        targets: Targets = random_targets(sizes, generator)
        return COSTS[family](layers, groups * queries, targets, generator), sizes, groups
    generated = [[GENERATED[family](rng, size, queries) for size in sizes] for _ in range(layers * groups)]
    cost = torch.from_numpy(np.stack([np.concatenate(blocks) for blocks in generated]))
    cost = cost.view(layers, groups, -1, queries).transpose(1, 2).flatten(2)
    return (cost.float() if rng.random() < 0.5 else cost), sizes, groups


def check_round(rng: np.random.Generator, cost: Tensor, sizes: list[int], groups: int) -> int:
    """Return the number of problems checked.

    Raises:
        AssertionError: An answer is not SciPy's, or its proof fails.
    """
    if rng.random() < 0.5:
        cost = cost.transpose(1, 2).contiguous().transpose(1, 2)
    _C.use_instruction_set(rng.choice(_C.instruction_sets()))
    threads = int(rng.integers(1, 4))
    answer = ops.batch_linear_sum_assignment(
        cost, sizes, groups=groups, num_threads=threads, on_error="mark", return_duals=True
    )
    layers, num_targets, all_queries = cost.shape
    index = answer.query_index.view(layers, groups, num_targets)
    queries = all_queries // groups
    proof = ops.verify_assignment(cost, *answer, sizes)
    # Costs that differ by orders of magnitude leave rounding in the duals: the bound is relative to the largest cost.
    gap = proof.gap.view(layers, groups, len(sizes))
    bound = 1e-11 * cost.double().nan_to_num(0, 0, 0).abs().max() if cost.numel() else 0.0
    optimal = proof.optimal.view(layers, groups, len(sizes)) | (gap <= bound)
    matrices = cost.numpy().reshape(layers, num_targets, groups, queries)
    for layer in range(layers):
        for group in range(groups):
            for image, (start, size) in enumerate(zip(np.cumsum([0, *sizes]), sizes, strict=False)):
                matrix = matrices[layer, start : start + size, group].T
                query, target = scipy.optimize.linear_sum_assignment(matrix)
                expected = np.full(size, -1)
                expected[target] = query + group * queries
                where = f"layer {layer}, group {group}, image {image}"
                np.testing.assert_array_equal(index[layer, group, start : start + size], expected, where)
                assert optimal[layer, group, image], f"{where}: the duals do not prove the answer"
                for result, of_scipy in zip(ops.linear_sum_assignment(matrix), (query, target), strict=True):
                    np.testing.assert_array_equal(result, of_scipy, where)
    return layers * groups * len(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    end = time.monotonic() + options.seconds
    done: Counter[str] = Counter()
    round_number = 0
    while done.total() < options.problems and time.monotonic() < end:
        family = FAMILIES[round_number % len(FAMILIES)]
        rng = np.random.default_rng([options.seed, round_number])
        try:
            done[family] += check_round(rng, *random_round(rng, family))
        except AssertionError as error:
            raise SystemExit(f"{family}, round {round_number} of seed {options.seed}: {error}") from error
        round_number += 1
    for family in FAMILIES:
        print(f"{family:>14} {done[family]:>9}")
    print(f"{done.total()} problems: every index equals SciPy's, every answer is proved by its duals")


if __name__ == "__main__":
    main()

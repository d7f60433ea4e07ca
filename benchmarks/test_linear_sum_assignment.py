"""Every solver on every set, under pytest-benchmark: ``python -m pytest benchmarks``.

For ratios, measured in turns and written to a table, see ``python -m benchmarks.linear_sum_assignment``.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch

from benchmarks.assignment_costs import training_step
from benchmarks.assignment_peers import OURS, PEERS, Problems, scipy_loop

SETS = {100: (6, 16), 300: (4, 16), 900: (7, 8)}  # queries: layers, images


@cache
def _problems(family: str, queries: int) -> Problems:
    torch.set_num_threads(1)
    return Problems.of(*training_step(family, *SETS[queries], queries))


@pytest.mark.parametrize("family", ["untrained", "trained"])
@pytest.mark.parametrize("queries", SETS)
@pytest.mark.parametrize("solver", [*OURS, *PEERS])
def test_training_step(family, queries, solver, benchmark):
    problems = _problems(family, queries)
    prepared, reference = {**OURS, **PEERS}[solver](problems), scipy_loop(problems)
    assert prepared.total(prepared.solve()) == pytest.approx(reference.total(reference.solve()), rel=1e-6)
    benchmark.group = f"{family}, {queries} queries"
    benchmark.extra_info["problems"] = len(problems.matrices)
    benchmark(prepared.solve)

"""Assignments in which a row stays unassigned rather than pay more than a limit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch

from detr_fast import Targets, ops
from tests.ops.conformance import host_backends

SHAPES = [(1, 1), (4, 6), (6, 4), (7, 7), (30, 25), (40, 60), (3, 0), (0, 3)]


def extend(cost: np.ndarray, limit: float, forbidden: float = np.inf) -> np.ndarray:
    own = np.full((len(cost), len(cost)), forbidden)
    own[np.diag_indices_from(own)] = limit
    return np.hstack((cost.astype(np.float64), own))


def scipy_answer(cost: np.ndarray, limit: float, maximize: bool = False) -> np.ndarray:
    """The column of each row, -1 for none, by SciPy on the extended matrix."""
    row, col = scipy.optimize.linear_sum_assignment(extend(cost, limit, -np.inf if maximize else np.inf), maximize)
    assert row.tolist() == list(range(len(cost)))
    return np.where(col < cost.shape[1], col, -1)


def as_columns(answer: tuple[np.ndarray, np.ndarray], num_rows: int) -> np.ndarray:
    columns = np.full(num_rows, -1)
    columns[answer[0]] = answer[1]
    return columns


def gated(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Costs of a tracker: most pairs are forbidden, and some rows have no candidate."""
    return np.where(rng.random(shape) < 0.85, np.inf, rng.random(shape))


@pytest.mark.parametrize("backend", ["cpp", "scipy", "reference"])
@pytest.mark.parametrize("maximize", [False, True])
def test_one_matrix_is_scipys_answer_of_the_extended_matrix(backend, maximize):
    rng = np.random.default_rng(0)
    for shape, limit in itertools.product(SHAPES, (-0.5, 0.0, 0.25, 0.5, 2.0)):
        for cost in (rng.random(shape), rng.random(shape) * 4 // 1 / 4, gated(rng, shape)):
            cost = -cost if maximize and np.isinf(cost).any() else cost
            with ops.use_backend(linear_sum_assignment=backend):
                found = ops.linear_sum_assignment(cost, maximize, cost_limit=limit)
            np.testing.assert_array_equal(as_columns(found, len(cost)), scipy_answer(cost, limit, maximize))


def test_the_optimum_is_not_the_filtered_answer():
    """Without the limit the second row takes the first column, so that a filter leaves no pair."""
    cost = np.array([[0.1, 3.0], [0.2, 9.0]])
    row, col = ops.linear_sum_assignment(cost)
    assert cost[row, col].tolist() == [3.0, 0.2]
    row, col = ops.linear_sum_assignment(cost, cost_limit=1.0)
    assert (row.tolist(), col.tolist()) == ([0], [0])


def test_every_assignment_of_small_matrices():
    """By enumeration, of all assignments of any number of pairs."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        cost, limit = rng.normal(size=(3, 3)), rng.normal()
        columns = itertools.product((-1, 0, 1, 2), repeat=3)
        valid = [c for c in columns if len({x for x in c if x >= 0}) == sum(x >= 0 for x in c)]
        totals = [sum(limit if x < 0 else cost[i, x] for i, x in enumerate(c)) for c in valid]
        found = as_columns(ops.linear_sum_assignment(cost, cost_limit=limit), 3)
        assert tuple(found) == valid[int(np.argmin(totals))]


def test_lapx_assigns_the_same():
    lap = pytest.importorskip("lap")
    rng = np.random.default_rng(2)
    for shape in ((20, 30), (30, 20), (25, 25)):
        for limit in (0.05, 0.3, 0.8):
            cost = rng.random(shape)
            _, expected, _ = lap.lapjv(cost, extend_cost=True, cost_limit=limit)
            found = as_columns(ops.linear_sum_assignment(cost, cost_limit=limit), shape[0])
            np.testing.assert_array_equal(found, expected)


def batch(dtype: torch.dtype, groups: int) -> tuple[torch.Tensor, list[int]]:
    sizes = [3, 0, 9, 14, 1]
    cost = torch.rand(2, sum(sizes), groups * 8, generator=torch.Generator().manual_seed(groups))
    cost[cost > 0.7] = torch.inf
    cost[1, 4] = torch.inf  # a target without any candidate
    return cost.to(dtype), sizes


@pytest.mark.parametrize("backend", host_backends("batch_linear_sum_assignment"))
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_batch_is_each_problem(backend, groups, dtype):
    cost, sizes = batch(dtype, groups)
    limit = 0.4
    index = ops.batch_linear_sum_assignment(cost, sizes, groups=groups, cost_limit=limit, backend=backend)
    index = index.view(2, groups, -1)
    rounded = limit if dtype == torch.float64 else float(np.float32(limit))
    for layer, group in itertools.product(range(2), range(groups)):
        start = 0
        for size in sizes:
            problem = cost[layer, start : start + size, group * 8 : group * 8 + 8].double().numpy()
            query = scipy_answer(problem, rounded)
            expected = np.where(query < 0, -1, query + group * 8)
            np.testing.assert_array_equal(index[layer, group, start : start + size], expected)
            start += size


def test_costs_of_integers_have_a_fractional_limit():
    cost = torch.tensor([[[0, 1], [1, 2]]])
    assert ops.batch_linear_sum_assignment(cost, [2], cost_limit=0.5).tolist() == [[0, -1]]
    assert ops.linear_sum_assignment(cost[0], cost_limit=0.5)[0].tolist() == [0]


def test_padded_targets_and_strides():
    targets = Targets.from_list(
        [{"labels": [0] * n, "boxes": torch.full((n, 4), 0.2)} for n in (2, 0, 3)],
    )
    cost = torch.rand(5, 6, 2, generator=torch.Generator().manual_seed(0)).permute(2, 0, 1)  # [2,5,6]
    expected = ops.batch_linear_sum_assignment(cost, [2, 0, 3], cost_limit=0.2)
    assert torch.equal(ops.batch_linear_sum_assignment(cost, targets, cost_limit=0.2), expected)
    padded = targets.pad(max_targets=4)
    rows = torch.cat((cost, torch.zeros(2, padded.num_targets - 5, 6)), 1)
    found = ops.batch_linear_sum_assignment(rows, padded, cost_limit=0.2)
    assert torch.equal(found[:, :5], expected)
    assert (found[:, 5:] == -1).all()


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("limit", [-0.1, 0.0, 0.05, 0.3, 5.0])
def test_the_duals_prove_the_optimum(backend, groups, dtype, limit):
    cost, sizes = batch(dtype, groups)
    answer = ops.batch_linear_sum_assignment(
        cost, sizes, groups=groups, cost_limit=limit, return_duals=True, backend=backend
    )
    assert answer.u.shape == answer.query_index.shape
    assert answer.v.shape == (2, len(sizes), groups * 8)
    assert float(answer.u.max()) <= limit + 1e-6
    assert ops.verify_assignment(cost, *answer, sizes, cost_limit=limit)


def test_no_other_assignment_is_proved():
    cost = torch.rand(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    index, u, v = (x[0] for x in ops.batch_linear_sum_assignment(cost[None], [4], cost_limit=0.3, return_duals=True))
    proved = []
    for queries in itertools.product(range(-1, 6), repeat=4):  # with a query that does not exist
        if ops.verify_assignment(cost, torch.tensor(queries), u, v[0], cost_limit=0.3):
            proved.append(list(queries))
    assert proved == [index.tolist()]
    assert -1 in index.tolist()
    assert not ops.verify_assignment(cost, index, u, v[0], cost_limit=0.6)
    assert not ops.verify_assignment(cost, index, u, v[0])


def test_a_query_of_another_group_is_not_an_unassigned_target():
    cost = torch.ones(1, 1, 4, dtype=torch.float64)
    u, v = torch.full((1, 2, 1), 0.5, dtype=torch.float64), torch.zeros(1, 1, 4, dtype=torch.float64)
    for index, proved in (([-1, -1], True), ([-1, 1], False)):
        found = ops.verify_assignment(cost, torch.tensor(index).view(1, 2, 1), u, v, [1], cost_limit=0.5)
        assert bool(found) == proved


def test_a_limit_is_compiled():
    cost, sizes = batch(torch.float32, 1)

    def assign(cost):
        return ops.batch_linear_sum_assignment(cost, sizes, cost_limit=0.4)

    compiled = torch.compile(assign, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(cost), assign(cost))


@pytest.mark.parametrize("limit", [np.inf, -np.inf, np.nan, 1e39])
def test_a_limit_that_is_not_finite_is_refused(limit):
    cost = torch.zeros(1, 2, 3)
    for call in (
        lambda: ops.linear_sum_assignment(cost[0], cost_limit=limit),
        lambda: ops.batch_linear_sum_assignment(cost, [2], cost_limit=limit),
        lambda: ops.verify_assignment(cost, *(torch.zeros(1, 2),) * 2, torch.zeros(1, 1, 3), [2], cost_limit=limit),
    ):
        with pytest.raises(ValueError, match="cost_limit must be finite"):
            call()
    with pytest.raises(TypeError, match="cost_limit must be a number, got 'low'"):
        ops.linear_sum_assignment(cost[0], cost_limit="low")


def test_an_invalid_cost_is_named_with_its_target():
    cost = torch.zeros(2, 3, 2)
    cost[1, 2, 0] = torch.nan
    with pytest.raises(ValueError, match="layer 1, image 1, target 1: the matching cost contains NaN"):
        ops.batch_linear_sum_assignment(cost, [1, 2], cost_limit=1.0)
    marked = ops.batch_linear_sum_assignment(cost, [1, 2], cost_limit=1.0, on_error="mark")
    assert marked.tolist() == [[0, 0, 1], [0, -1, -1]]

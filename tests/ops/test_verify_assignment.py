from __future__ import annotations

import itertools

import pytest
import torch

from detr_fast import ops


def _solved(sizes, queries, groups=1, ties=False, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(2, sum(sizes), groups * queries, generator=generator, dtype=dtype)
    cost = scale * ((cost * 4).round() if ties else cost)
    return cost, *ops.batch_linear_sum_assignment(cost, sizes, groups=groups, return_duals=True)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_every_answer_is_proved(ties, groups, scale):
    sizes = [3, 0, 8, 15, 1]  # fewer, as many and more than the queries
    for dtype in (torch.float32, torch.float64):
        cost, index, u, v = _solved(sizes, 8, groups, ties, dtype, scale)
        proof = ops.verify_assignment(cost, index, u, v, sizes)
        assert bool(proof)
        assert proof.gap.shape == ((2, 5) if groups == 1 else (2, 2, 5))
        assert float(proof.gap.max()) <= 1e-12 * scale
        assert u.dtype == v.dtype == torch.float64


def test_one_problem():
    cost, index, u, v = _solved([5], 9)
    assert bool(ops.verify_assignment(cost[0], index[0], u[0], v[0, 0]))
    assert not bool(ops.verify_assignment(cost[1], index[0], u[0], v[0, 0]))


def test_no_worse_assignment_passes():
    """All assignments of a small problem with the best duals: only the optimal one is proved."""
    cost, index, u, v = _solved([3], 4, dtype=torch.float64)
    best = float(cost[0, range(3), index[0]].sum())
    for queries in itertools.permutations(range(4), 3):
        proof = ops.verify_assignment(cost[0], torch.tensor(queries), u[0], v[0, 0])
        worse = float(cost[0, range(3), queries].sum()) - best
        assert bool(proof) == (list(queries) == index[0].tolist())
        assert float(proof.gap) == pytest.approx(worse, abs=1e-14)


@pytest.mark.parametrize("index", [[0, 0, 1], [0, 1, -1], [0, 1, 4], [-1, -1, -1]])
def test_no_incomplete_assignment_passes(index):
    assert not bool(ops.verify_assignment(torch.zeros(3, 4), torch.tensor(index), torch.zeros(3), torch.zeros(4)))
    assert bool(ops.verify_assignment(torch.zeros(3, 4), torch.arange(3), torch.zeros(3), torch.zeros(4)))


def test_no_wrong_duals_pass():
    cost, index, u, v = (x[0] for x in _solved([3], 6, dtype=torch.float64))
    v = v[0]
    free = next(query for query in range(6) if query not in index.tolist())
    for change_u, change_v in itertools.product((0.0, 0.1, -0.1), (0.0, 0.1, -0.1)):
        wrong_u, wrong_v = u.clone(), v.clone()
        wrong_u[1] += change_u
        wrong_v[free] += change_v
        assert bool(ops.verify_assignment(cost, index, wrong_u, wrong_v)) == (change_u == change_v == 0)
    shifted = ops.verify_assignment(cost, index, u - 0.5, v + 0.5)  # the same on pairs, but free queries' are not 0
    assert not bool(shifted)
    assert float(shifted.gap) > 0
    assert not bool(ops.verify_assignment(cost, index, u * float("nan"), v))


@pytest.mark.parametrize("size", [2, 5, 20])
@pytest.mark.parametrize("shift", [1e15, -1e15, 1e300])
def test_inflated_duals_prove_nothing(size, shift):
    """Duals so large that the costs vanish in their rounding satisfy every constraint."""
    cost = torch.rand(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    u, v = torch.full((2, size), shift, dtype=torch.float64) * torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    for index in (torch.arange(size), torch.arange(size).flip(0), torch.arange(size).roll(1)):
        assert not bool(ops.verify_assignment(cost, index, u, v))


@pytest.mark.parametrize("row", [0, 3])
def test_an_outlier_does_not_hide_a_worse_pair(row):
    """One target's costs are 1e13 higher: a target moved to a query 0.6 dearer is not proved, whichever it is."""
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(6, 9, dtype=torch.float64, generator=generator)
    cost[row] += 1e13
    index, u, v = (x[0] for x in ops.batch_linear_sum_assignment(cost[None], [6], return_duals=True))
    unassigned = sorted(set(range(9)) - set(index.tolist()))
    found = 0
    for target, query in itertools.product(range(6), unassigned):
        if cost[target, query] - cost[target, index[target]] > 0.6:
            worse = index.clone()
            worse[target] = query
            assert not bool(ops.verify_assignment(cost, worse, u, v[0]))
            found += 1
    assert found >= 3


def test_an_outlying_pair_does_not_hide_a_worse_one():
    """One pair that has to be taken costs 1e13; the others are still held to their own costs."""
    cost = torch.rand(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cost[:, 4] += 1e13
    index, u, v = (x[0] for x in ops.batch_linear_sum_assignment(cost[None], [5], return_duals=True))
    for first, second in itertools.combinations(range(5), 2):
        worse = index.clone()
        worse[[first, second]] = index[[second, first]]
        if float(cost[range(5), worse].sum() - cost[range(5), index].sum()) > 0.01:
            assert not bool(ops.verify_assignment(cost, worse, u, v[0]))


def test_forbidden_pairs_are_not_outliers():
    cost = torch.rand(1, 4, 9, generator=torch.Generator().manual_seed(0))
    cost[cost > 0.4] = torch.inf
    cost[0, range(4), range(4)] = 0.5
    answer = ops.batch_linear_sum_assignment(cost, [4], return_duals=True)
    assert bool(ops.verify_assignment(cost, *answer, [4]))
    worse = answer.query_index.clone()
    worse[0, 0] = next(q for q in range(9) if q not in worse[0].tolist() and cost[0, 0, q] < torch.inf)
    assert not bool(ops.verify_assignment(cost, worse, *answer[1:], [4]))


def test_no_images():
    answer = ops.batch_linear_sum_assignment(torch.zeros(2, 0, 5), [], return_duals=True)
    proof = ops.verify_assignment(torch.zeros(2, 0, 5), *answer, [])
    assert bool(proof)
    assert proof.gap.shape == (2, 0)


def test_shapes_must_fit():
    cost, index, u, v = _solved([3, 2], 6)
    with pytest.raises(ValueError, match="needs index and u"):
        ops.verify_assignment(cost, index, u[:, :4], v, [3, 2])
    with pytest.raises(ValueError, match="sum of the sizes"):
        ops.verify_assignment(cost, index, u, v, [3, 3])


def test_scipy_gives_no_duals():
    with pytest.raises(ops.BackendError, match="'scipy' cannot run on cpu: it does not compute 'duals'"):
        ops.batch_linear_sum_assignment(torch.zeros(1, 2, 3), [2], return_duals=True, backend="scipy")

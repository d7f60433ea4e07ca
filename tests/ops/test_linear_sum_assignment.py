from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detr_fast import ops

BACKENDS = ["cpp", "scipy"]


def _families(rng: np.random.Generator, rows: int, cols: int) -> list[np.ndarray]:
    uniform = rng.random((rows, cols))
    forbidden = np.where(rng.random((rows, cols)) < 0.2, np.inf, uniform)
    k = np.arange(min(rows, cols))
    forbidden[k, k] = uniform[k, k]  # keeps it feasible
    return [
        uniform,
        uniform.astype(np.float32),
        rng.integers(0, 3, (rows, cols)).astype(np.float64),
        np.zeros((rows, cols)),
        1 + 1e-6 * rng.integers(0, 4, (rows, cols)),
        1e6 * rng.integers(0, 2, (rows, cols)) + uniform,
        torch.from_numpy(uniform).bfloat16().double().numpy(),
        -uniform,
        forbidden,
    ]


@pytest.mark.parametrize("seed", range(6))
def test_same_indices_as_scipy(seed):
    rng = np.random.default_rng(seed)
    sizes = [(1, 1), (1, 9), (9, 1), (7, 7), (20, 33), (33, 20), (64, 64), (5, 100)]
    for (rows, cols), maximize in itertools.product(sizes, (False, True)):
        for cost in _families(rng, rows, cols):
            cost = -cost if maximize else cost
            expected = scipy.optimize.linear_sum_assignment(cost, maximize)
            own = ops.linear_sum_assignment(cost, maximize)
            for ours, theirs in zip(own, expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)
                assert ours.dtype == theirs.dtype


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 8).flatmap(
        lambda n: st.integers(0, 8).flatmap(
            lambda m: st.lists(st.lists(st.integers(-3, 3), min_size=m, max_size=m), min_size=n, max_size=n).map(
                lambda rows: np.array(rows, dtype=np.float64).reshape(n, m)
            )
        )
    )
)
def test_ties_as_scipy(cost):
    for ours, theirs in zip(ops.linear_sum_assignment(cost), scipy.optimize.linear_sum_assignment(cost), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_as_scipy_takes_them(backend):
    base = np.array([[4, 1, 3], [2, 0, 5], [3, 2, 2]])
    expected = scipy.optimize.linear_sum_assignment(base)
    inputs = [
        base.tolist(),
        base.astype(np.int8),
        base.astype(np.uint16),
        base.astype(np.float16),
        np.asfortranarray(base.astype(np.float32)),
        np.repeat(base, 2, axis=1)[:, ::2],
        torch.from_numpy(base),
        torch.from_numpy(base).bfloat16(),
        torch.from_numpy(base).float().requires_grad_(),
    ]
    with ops.use_backend(linear_sum_assignment=backend):
        for cost in inputs:
            for ours, theirs in zip(ops.linear_sum_assignment(cost), expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)
        rows, cols = ops.linear_sum_assignment(base > 2, maximize=True)
        assert (base > 2)[rows, cols].sum() == 2


def test_errors_as_scipy_raises_them():
    for bad in (np.nan, -np.inf):
        with pytest.raises(ValueError, match="matrix contains invalid numeric entries"):
            ops.linear_sum_assignment(np.array([[1.0, bad], [2.0, 3.0]]))
    with pytest.raises(ValueError, match="matrix contains invalid numeric entries"):
        ops.linear_sum_assignment(np.array([[1.0, np.inf], [2.0, 3.0]]), maximize=True)
    with pytest.raises(ValueError, match="cost matrix is infeasible"):
        ops.linear_sum_assignment([[np.inf, np.inf], [1.0, 2.0]])
    with pytest.raises(ValueError, match="expected a matrix"):
        ops.linear_sum_assignment([1, 2, 3])
    for kind in (str, object, complex, np.longdouble):
        with pytest.raises(TypeError, match="Cannot cast array data"):
            ops.linear_sum_assignment(np.identity(3).astype(kind))


@pytest.mark.parametrize("case", "ABCDEFT")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_indices(golden, golden_case, case, backend, dtype):
    expected = golden("match_official")
    logits, boxes, targets = golden_case(case, dtype)
    cost = ops.match_cost(logits, boxes, targets)
    index = ops.batch_linear_sum_assignment(cost, targets, backend=backend)
    precision = "f32" if dtype == torch.float32 else "f64"
    for layer in range(logits.shape[0]):
        src, tgt, counts = (expected[f"{case}/{precision}/L{layer}/{key}"] for key in ("src", "tgt", "len"))
        matched = np.full(targets.num_targets, -1)
        pair = start = 0
        for size, count in zip(targets.sizes, counts, strict=True):
            matched[start + tgt[pair : pair + count]] = src[pair : pair + count]
            pair, start = pair + count, start + size
        np.testing.assert_array_equal(index[layer].numpy(), matched)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_batch_is_scipy_on_each_images_matrix(ties, groups):
    generator = torch.Generator().manual_seed(groups)
    sizes, queries = [3, 0, 12, 17, 1], 12
    cost = torch.rand(2, sum(sizes), groups * queries, generator=generator)
    cost = (cost * 3).round() if ties else cost
    index = ops.batch_linear_sum_assignment(cost, sizes, groups=groups).reshape(2, groups, -1)
    assert torch.equal(
        index, ops.batch_linear_sum_assignment(cost, sizes, groups=groups, backend="scipy").reshape(2, groups, -1)
    )
    for layer, group in itertools.product(range(2), range(groups)):
        start = 0
        for size in sizes:
            block = cost[layer, start : start + size, group * queries : (group + 1) * queries]
            query, target = scipy.optimize.linear_sum_assignment(block.T)
            own = index[layer, group, start : start + size]
            assert own[target].tolist() == (query + group * queries).tolist()
            assert int((own == -1).sum()) == max(0, size - queries)
            start += size


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int32])
def test_batch_takes_other_dtypes_and_strides(dtype):
    cost = (torch.rand(2, 40, 6, generator=torch.Generator().manual_seed(0)) * 50).to(dtype)
    view = cost.transpose(1, 2)[:, :, ::2]  # [2,6,20]
    expected = ops.batch_linear_sum_assignment(view.double().contiguous(), [2, 4], backend="scipy")
    assert torch.equal(ops.batch_linear_sum_assignment(view, [2, 4]), expected)


def test_batch_errors_name_the_place():
    cost = torch.zeros(2, 5, 4)
    cost[1, 3, 2] = float("nan")
    with pytest.raises(ValueError, match="layer 1, image 1, target 1: the matching cost holds NaN"):
        ops.batch_linear_sum_assignment(cost, [2, 3])
    cost[1, 3, :] = float("inf")
    with pytest.raises(ValueError, match="layer 1, image 1, target 1: the cost matrix is infeasible"):
        ops.batch_linear_sum_assignment(cost, [2, 3])
    with pytest.raises(ValueError, match="sum of the sizes"):
        ops.batch_linear_sum_assignment(cost, [2, 2])
    with pytest.raises(ValueError, match="cannot be divided into 3 groups"):
        ops.batch_linear_sum_assignment(cost, [2, 3], groups=3)


def test_nothing_to_assign():
    assert ops.batch_linear_sum_assignment(torch.zeros(2, 0, 5), [0, 0]).shape == (2, 0)
    assert ops.batch_linear_sum_assignment(torch.zeros(0, 3, 5), [3]).shape == (0, 3)
    assert ops.batch_linear_sum_assignment(torch.zeros(1, 3, 0), [3]).tolist() == [[-1, -1, -1]]
    for shape in ((0, 0), (0, 3), (3, 0)):
        rows, cols = ops.linear_sum_assignment(np.zeros(shape))
        assert rows.tolist() == cols.tolist() == []

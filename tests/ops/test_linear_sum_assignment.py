from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detr_fast import _C, ops

BACKENDS = ["cpp", "scipy"]


@pytest.fixture(params=_C.instruction_sets())
def instruction_set(request):
    assert _C.use_instruction_set(request.param)
    yield request.param
    _C.use_instruction_set(_C.instruction_sets()[0])


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
def test_same_indices_as_scipy(seed, instruction_set):
    rng = np.random.default_rng(seed)
    sizes = [(1, 1), (1, 9), (9, 1), (7, 7), (20, 33), (33, 20), (64, 64), (5, 100), (60, 90), (300, 12)]
    for (rows, cols), maximize in itertools.product(sizes, (False, True)):
        for cost in _families(rng, rows, cols):
            cost = -cost if maximize else cost
            expected = scipy.optimize.linear_sum_assignment(cost, maximize)
            own = ops.linear_sum_assignment(cost, maximize)
            for actual, desired in zip(own, expected, strict=True):
                np.testing.assert_array_equal(actual, desired)
                assert actual.dtype == desired.dtype


@st.composite
def costs(draw):
    """Small matrices, mostly with ties; some with forbidden pairs, some float32, some turned."""
    shape = draw(st.tuples(st.integers(0, 9), st.integers(0, 9)))
    kinds = [st.integers(-3, 3), st.sampled_from([0.1, 0.2, 0.3, 1e6, -1e-6]), st.floats(-1, 1, width=32)]
    values = draw(st.sampled_from(kinds))
    if draw(st.booleans()):
        values = values | st.just(float("inf"))
    count = shape[0] * shape[1]
    flat = np.array(draw(st.lists(values, min_size=count, max_size=count)), dtype=np.float64)
    cost = flat.reshape(shape).astype(draw(st.sampled_from([np.float32, np.float64])))
    return np.asfortranarray(cost) if draw(st.booleans()) else cost


def _answer(solve, *args):
    try:
        return [x.tolist() for x in solve(*args)]
    except ValueError as error:
        return str(error)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(costs(), st.booleans())
def test_everything_small_is_scipys(cost, maximize):
    expected = _answer(scipy.optimize.linear_sum_assignment, cost, maximize)
    assert _answer(ops.linear_sum_assignment, cost, maximize) == expected


@pytest.mark.slow
def test_scipys_own_tests():
    """Its test file with its function replaced by that of detr_fast."""
    pytest.importorskip("scipy.optimize.tests.test_linear_assignment", reason="SciPy was installed without its tests")
    code = """
import sys, pytest, scipy.optimize, detr_fast
calls = []
def counted(*args, **kwargs):
    calls.append(1)
    return detr_fast.ops.linear_sum_assignment(*args, **kwargs)
scipy.optimize.linear_sum_assignment = counted
arguments = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--pyargs"]
failed = pytest.main([*arguments, "scipy.optimize.tests.test_linear_assignment"])
sys.exit(failed or len(calls) < 22)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "failed" not in result.stdout


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
        base.astype(">f4"),
        np.frombuffer(b"x" + base.astype(np.float64).tobytes(), np.uint8)[1:].view(np.float64).reshape(3, 3),
        np.broadcast_to(base[:, :, None], (3, 3, 2))[..., 1],
        np.repeat(base, 2, axis=1)[:, ::2],
        torch.from_numpy(base),
        torch.from_numpy(base).bfloat16(),
        torch.from_numpy(base).float().requires_grad_(),
    ]
    with ops.use_backend(linear_sum_assignment=backend):
        for cost in inputs:
            for actual, desired in zip(ops.linear_sum_assignment(cost), expected, strict=True):
                np.testing.assert_array_equal(actual, desired)
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


def test_degenerate_shapes():
    for shape in ((0, 0), (0, 3), (3, 0)):
        rows, cols = ops.linear_sum_assignment(np.zeros(shape))
        assert rows.tolist() == cols.tolist() == []
        assert rows.dtype == cols.dtype == np.int64


def test_numbers_near_overflow_are_as_scipys():
    rng = np.random.default_rng(0)
    for scale, dtype in ((1e300, np.float64), (1e-300, np.float64), (1e-320, np.float64), (3e38, np.float32)):
        for shape in ((5, 9), (9, 9), (20, 12)):
            cost = (rng.uniform(-0.1, 1, shape) * scale).astype(dtype)
            assert _answer(ops.linear_sum_assignment, cost) == _answer(scipy.optimize.linear_sum_assignment, cost)

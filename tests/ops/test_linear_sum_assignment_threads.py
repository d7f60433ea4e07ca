from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.optimize
import torch

from detr_fast import _C, ops
from detr_fast.ops.dispatch import OPS

HANG = 120  # seconds after which a subprocess is taken to hang


def _large_batch():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(0, 30, (64,), generator=generator).tolist()
    return torch.rand(6, sum(sizes), 100, generator=generator), sizes


def test_answers_do_not_depend_on_threads():
    cost, sizes = _large_batch()
    cost = (cost * 50).round()  # with ties
    alone = ops.batch_linear_sum_assignment(cost, sizes, return_duals=True)
    assert torch.equal(alone.query_index, ops.batch_linear_sum_assignment(cost, sizes, backend="scipy"))
    for num_threads in (2, 5, 64):
        shared = ops.batch_linear_sum_assignment(cost, sizes, num_threads=num_threads, return_duals=True)
        assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_number_of_threads_from_the_environment(monkeypatch):
    cost, sizes = torch.rand(1, 3, 4), [3]
    asked = []
    cpp = OPS["batch_linear_sum_assignment"].backends["cpp"]
    solve = cpp.forward
    monkeypatch.setitem(cpp.__dict__, "forward", lambda *args: asked.append(args[5]) or solve(*args))
    monkeypatch.delenv("DETR_FAST_NUM_THREADS", raising=False)
    ops.batch_linear_sum_assignment(cost, sizes)
    monkeypatch.setenv("DETR_FAST_NUM_THREADS", "3")
    ops.batch_linear_sum_assignment(cost, sizes)
    ops.batch_linear_sum_assignment(cost, sizes, num_threads=2)
    assert asked == [1, 3, 2]
    monkeypatch.setenv("DETR_FAST_NUM_THREADS", "many")
    with pytest.raises(ValueError, match="DETR_FAST_NUM_THREADS must be a number, got 'many'"):
        ops.batch_linear_sum_assignment(cost, sizes)
    with pytest.raises(ValueError, match="num_threads must be at least 1"):
        ops.batch_linear_sum_assignment(cost, sizes, num_threads=0)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
def test_threads_are_its_own():
    """Helpers come although torch has one thread, the GIL is free meanwhile, and none is left; torch's number stays."""
    cost = torch.randn(1, 3000, 300, generator=torch.Generator().manual_seed(0)).expand(30, -1, -1)

    def count():
        return len(os.listdir("/proc/self/task"))

    torch_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        before = most = count()
        worker = threading.Thread(
            target=ops.batch_linear_sum_assignment, args=(cost, [150] * 20), kwargs={"num_threads": 4}
        )
        worker.start()
        while worker.is_alive():
            most = max(most, count())
            time.sleep(0.001)
        worker.join()
        assert most == before + 1 + 3
        assert count() == before
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(torch_threads)


def test_64_python_threads_at_once():
    rng = np.random.default_rng(0)
    costs = [rng.random((int(n), int(m))).round(1) for n, m in rng.integers(1, 60, (64, 2))]
    expected = [scipy.optimize.linear_sum_assignment(cost) for cost in costs]
    cost, sizes = _large_batch()
    batch = ops.batch_linear_sum_assignment(cost, sizes)
    barrier = threading.Barrier(64)

    def work(k):
        barrier.wait()
        for _ in range(5):
            for actual, desired in zip(ops.linear_sum_assignment(costs[k]), expected[k], strict=True):
                np.testing.assert_array_equal(actual, desired)
            assert torch.equal(ops.batch_linear_sum_assignment(cost, sizes, num_threads=1 + k % 3), batch)

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(work, range(64)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_goes_on():
    code = """
import os, sys, torch
from detr_fast import ops
cost, sizes = torch.rand(6, 1600, 100, generator=torch.Generator().manual_seed(0)), [25] * 64
def solve():
    return ops.batch_linear_sum_assignment(cost, sizes, num_threads=4)
expected = solve()
child = os.fork()
if child == 0:
    grandchild = os.fork()
    right = torch.equal(solve(), expected)
    if grandchild:
        right &= os.waitpid(grandchild, 0)[1] == 0
    os._exit(not right)
sys.exit(os.waitpid(child, 0)[1] != 0 or not torch.equal(solve(), expected))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG)
    assert result.returncode == 0, result.stderr


SOLVE = f"""
import importlib.util, warnings
warnings.simplefilter("ignore")
try:
    import numpy as np
except ImportError as error:
    print("NumPy:", error)
else:
    spec = importlib.util.spec_from_file_location("_C", {_C.__file__!r})
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    print([x.tolist() for x in module.solve(np.arange(12.0).reshape(3, 4) % 5)])
"""


@pytest.mark.skipif(sys.version_info < (3, 12), reason="pybind11 supports subinterpreters from Python 3.12 on")
def test_a_subinterpreter():
    """The extension alone, as torch does not load there, and first, as NumPy loads once a process."""
    code = f"""
import sys
try:
    import _interpreters
    number = _interpreters.create("legacy")
except ImportError:
    import _xxsubinterpreters as _interpreters
    number = _interpreters.create(isolated=False)
sys.exit(_interpreters.run_string(number, {SOLVE!r}) is not None)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG)
    assert result.returncode == 0, result.stdout + result.stderr
    if result.stdout.startswith("NumPy:"):
        pytest.skip(result.stdout.strip())
    expected = scipy.optimize.linear_sum_assignment(np.arange(12.0).reshape(3, 4) % 5)
    assert result.stdout.strip() == str([x.tolist() for x in expected])


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has a GIL")
def test_the_gil_stays_off():
    assert not sys._is_gil_enabled()

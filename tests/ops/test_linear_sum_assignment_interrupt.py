"""Ctrl-C ends the C++ solver, within a problem and between problems, from every thread that solves."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send")

# Each takes ten seconds or more. The rows of a product table compete for the same columns.
HARD = "numpy.outer(numpy.arange(2500.0), numpy.arange(2500.0))"
CALLS = {
    "one matrix": f"cost = {HARD}; call = lambda: ops.linear_sum_assignment(cost)",
    "one problem": f"cost = torch.from_numpy({HARD})[None]; call = lambda: solve(cost, [2500], backend='cpp')",
    "many problems": (
        "cost = torch.rand(1, 50, 100).expand(2_000_000, 50, 100); call = lambda: solve(cost, [50], backend='cpp')"
    ),
    # Every problem but one is solved at once, so that the calling thread waits for another.
    "a problem of another thread": (
        f"cost = torch.from_numpy({HARD}); easy = 1 - torch.eye(300, 2500, dtype=cost.dtype);"
        "cost = torch.cat([easy] * 8 + [cost])[None];"
        "call = lambda: solve(cost, [300] * 8 + [2500], num_threads=2, backend='cpp')"
    ),
    "several threads": (
        f"cost = torch.from_numpy({HARD}).expand(8, 2500, 2500); "
        "call = lambda: solve(cost, [2500], num_threads=3, backend='cpp')"
    ),
}
SCRIPT = """
import numpy, signal, torch
from detr_fast import ops
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it
solve = ops.batch_linear_sum_assignment
{call}
print("ready", flush=True)
try:
    call()
except KeyboardInterrupt:
    small = numpy.array([[4, 1, 3], [2, 0, 5], [3, 2, 2]])
    print("interrupted", ops.linear_sum_assignment(small)[1].tolist(), flush=True)
"""


@pytest.mark.parametrize("name", CALLS)
def test_ctrl_c(name):
    child = subprocess.Popen([sys.executable, "-c", SCRIPT.format(call=CALLS[name])], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(1)
        start = time.monotonic()
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "interrupted [1, 0, 2]\n"
        assert time.monotonic() - start < 8  # a second, and more where other processes use the cores
        assert child.wait(timeout=30) == 0
    finally:
        child.kill()
        child.wait()

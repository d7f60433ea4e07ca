"""Registers and spills of the kernels, as ptxas reports them for GPUs that are not there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from detr_fast.ops.dispatch import OPS

ROOT = Path(__file__).parents[2]
MAX_SPILL = 64  # bytes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.compile_report"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_architecture_is_compiled_for(rows):
    architectures = {row["architecture"] for row in rows}
    assert architectures == {80, 89, 90, 100, 120}
    assert len(rows) == len({row["name"] for row in rows}) * len(architectures)


def test_every_kernel_of_every_op_is_compiled(rows):
    defined = set()
    for path in (ROOT / "kernels").glob("*.py"):
        defined |= set(re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.MULTILINE))
    assert {row["kernel"] for row in rows} == defined
    in_triton = {name for name, op in OPS.items() if "triton" in op.backends}
    assert {row["name"].split(",")[0] for row in rows} == in_triton


def test_no_kernel_spills(rows):
    spilling = [row for row in rows if max(row["spill_stores"], row["spill_loads"], row["stack"]) > MAX_SPILL]
    assert not spilling


def test_registers_stay_within_their_limits(rows):
    assert not [row for row in rows if row["registers"] > row["limit"]]

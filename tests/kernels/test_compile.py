"""What ptxas makes of the kernels on GPUs that are not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPORT = Path(__file__).with_name("compile_report.py")
MOST_SPILLED = 64  # bytes


@pytest.fixture(scope="module")
def rows():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, str(REPORT)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_architecture_is_compiled_for(rows):
    architectures = {row["architecture"] for row in rows}
    assert architectures == {80, 89, 90, 100, 120}
    assert len(rows) == len({row["name"] for row in rows}) * len(architectures)


def test_no_kernel_spills(rows):
    spilling = [row for row in rows if max(row["spill_stores"], row["spill_loads"], row["stack"]) > MOST_SPILLED]
    assert not spilling


def test_registers_stay_below_the_ceilings(rows):
    assert not [row for row in rows if row["registers"] > row["ceiling"]]

"""The examples run, and what they print shows that they do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str) -> str:
    """Run an example; what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested():
    tested = set(re.findall(r'run\("(\w+\.py)"\)', Path(__file__).read_text()))
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested


def test_own_detector():
    totals = [float(total) for total in re.findall(r"total ([\d.]+)", run("own_detector.py"))]
    assert totals[-1] < 0.8 * totals[0]


def test_compare_backends():
    output = run("compare_backends.py")
    assert "cpp:\n  match_cost: largest difference" in output
    assert "DIFFER" not in output
    assert all(float(difference) < 1e-4 for difference in re.findall(r"float64 (\S+)", output))


def test_tracker():
    assert run("tracker.py").splitlines()[-1].endswith("3 tracks")


def test_transformers_detr():
    pytest.importorskip("transformers")
    output = run("transformers_detr.py")
    host, accelerated = (float(loss) for loss in re.findall(r"(?:transformers|accelerated) ([\d.]+)", output))
    assert accelerated == pytest.approx(host, rel=1e-5)
    losses = [float(loss) for loss in re.findall(r"step \d: loss ([\d.]+)", output)]
    assert len(losses) == 3
    assert losses[-1] < losses[0]

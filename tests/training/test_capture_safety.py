"""Nothing in a step prevents its capture: a step with the optimizer, clipping and the average, on a fake GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fake_cuda import environment

ROOT = Path(__file__).parents[2]
SAFE = ("detr", "resnet50", "learned positions", "mmdet2", "mmdet3", "deformable", "rt_detr", "lw_detr")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    try:
        variables = environment(tmp_path_factory.mktemp("fake_cuda"))
    except RuntimeError as reason:
        pytest.skip(str(reason))
    command = [sys.executable, "-m", "tests.training.capture_safety"]
    done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", SAFE)
def test_a_step_neither_reads_nor_copies_on_the_host(steps, name):
    assert steps[name]["forbidden"] == []
    # The images, the mask, and the labels, boxes and offsets of the targets.
    assert steps[name]["outside"] == ["aten::copy_"] * 5
    assert steps[name]["adamw"] == 2


@pytest.mark.parametrize(
    ("name", "found"), [("reads", "_local_scalar_dense"), ("copies", "_to_copy"), ("creates", "_to_copy")]
)
def test_what_prevents_a_capture_is_found(steps, name, found):
    assert any(found in line for line in steps[name]["forbidden"])


def test_the_detr_of_transformers_reads_numbers_in_training(steps):
    """It checks in each encoder layer that its features are finite, as the documentation says."""
    pytest.importorskip("transformers")
    assert any("_local_scalar_dense" in line for line in steps["transformers"]["forbidden"])

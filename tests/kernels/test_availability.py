from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from detr_fast import kernels
from detr_fast.ops.dispatch import OPS, BackendError

IN_TRITON = ["sine_position_encoding", "pairwise_box", "match_cost", "set_loss"]


def test_the_solver_is_triton_on_a_gpu_and_cpp_on_a_cpu():
    assert OPS["linear_sum_assignment"].choose(torch.device("cuda")).name == "triton"
    assert OPS["linear_sum_assignment"].choose(torch.device("cpu")).name == "cpp"


@pytest.mark.parametrize("name", IN_TRITON)
def test_a_gpu_is_given_triton_and_a_cpu_the_next(name):
    assert OPS[name].choose(torch.device("cuda")).name == "triton"
    assert OPS[name].choose(torch.device("cpu")).name == list(OPS[name].backends)[1]


@pytest.mark.parametrize("name", IN_TRITON)
def test_without_triton_the_reference_runs_and_triton_says_why_not(name, monkeypatch):
    monkeypatch.setattr(kernels, "_installed", lambda: False)
    assert OPS[name].choose(torch.device("cuda")).name == "reference"
    with pytest.raises(BackendError, match="'triton' cannot run on cuda: Triton is not installed"):
        OPS[name].choose(torch.device("cuda"), "triton")


def test_other_devices_have_no_kernels():
    with pytest.raises(BackendError, match="cannot run on mps: the kernels are written for CUDA devices"):
        OPS["match_cost"].choose(torch.device("mps"), "triton")


@pytest.mark.parametrize(
    ("interpret", "answer"), [("0", "set TRITON_INTERPRET=1 before the first op runs"), ("1", "[1, 2]")]
)
def test_a_cpu_runs_triton_only_in_its_interpreter(interpret, answer):
    """The switch counts as it was when the kernels were first needed; turning it later changes nothing."""
    code = (
        "import os, torch; from detr_fast import ops\n"
        "def run(): return ops.pairwise_box_l1(torch.zeros(1, 4), torch.ones(2, 4), backend='triton')\n"
        "for switch in (os.environ['TRITON_INTERPRET'], '1', '0'):\n"
        "    os.environ['TRITON_INTERPRET'] = switch\n"
        "    try: print(list(run().shape))\n"
        "    except ops.BackendError as error: print(error)\n"
    )
    environment = {**os.environ, "TRITON_INTERPRET": interpret}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all(answer in line for line in lines)

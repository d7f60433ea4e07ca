from __future__ import annotations

import pytest
import torch
from detr_fast.ops.solver_choice import CROSSOVER, Work, on_device

from detr_fast import kernels
from detr_fast.ops.dispatch import OPS

COLUMN = OPS["linear_sum_assignment"]
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(autouse=True)
def triton_is_there(monkeypatch):
    monkeypatch.setattr(kernels, "_installed", lambda: True)


@pytest.mark.parametrize(
    ("work", "name"),
    [
        (Work(problems=96, most=20, queries=100), "triton"),  # a step of DETR's
        (Work(problems=208, most=300, queries=300), "triton"),
        (Work(problems=1, most=300, queries=300), "cpp"),
        (Work(problems=1, most=300, queries=20), "triton"),  # the smaller side is what takes steps
        (Work(problems=10_000, most=10, queries=kernels.LARGEST_PROBLEM + 1), "cpp"),
        (None, "triton"),
    ],
)
def test_who_solves_what_lies_on_a_gpu(work, name):
    assert COLUMN.choose(CUDA, work=work).name == name
    assert COLUMN.choose(CPU, work=work).name == "cpp"
    assert COLUMN.choose(CUDA, "triton", work=work).name == "triton"  # who asks by name is not overruled


def test_duals_are_the_hosts():
    assert COLUMN.choose(CUDA, variant="duals").name == "cpp"


def test_larger_problems_need_more_of_them():
    targets, fewest = zip(*CROSSOVER, strict=True)
    assert sorted(targets) == list(targets)
    assert sorted(fewest) == list(fewest)
    assert targets[-1] == kernels.LARGEST_PROBLEM
    for most, problems in CROSSOVER:
        assert on_device(Work(problems, most, 4096))
        assert not on_device(Work(problems - 1, most, 4096)) or problems == 1

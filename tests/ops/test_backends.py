from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from detr_fast import ops, use_backend
from detr_fast.ops.dispatch import OPS, Backend, BackendError, Column

NAMES = ["sine_position_encoding", "pairwise_box", "match_cost", "linear_sum_assignment", "set_loss"]


@pytest.fixture
def column():
    calls: list[str] = []

    def backend(name, reason=None):
        return Backend(name, lambda: {"run": lambda: calls.append(name)}, lambda device: reason)

    yield Column("testing", [backend("quick", "there is no quick device"), backend("medium"), backend("reference")])
    del OPS["testing"]


CPU = torch.device("cpu")


def test_every_hot_path_has_a_column():
    assert sorted(OPS) == sorted(NAMES)
    assert set(OPS["linear_sum_assignment"].backends) == {"triton", "cpp", "scipy"}


def test_the_first_that_can_run_is_taken(column):
    assert column.choose(CPU).name == "medium"


def test_one_asked_for_runs_or_says_why_not(column):
    assert column.choose(CPU, "reference").name == "reference"
    with pytest.raises(BackendError, match="testing: backend 'quick' cannot run on cpu: there is no quick device"):
        column.choose(CPU, "quick")
    with pytest.raises(BackendError, match="has no backend 'slow'; it has quick, medium, reference"):
        column.choose(CPU, "slow")


def test_use_backend_nests_and_ends(column):
    with use_backend(testing="reference"):
        assert column.choose(CPU).name == "reference"
        with use_backend(testing="medium"):
            assert column.choose(CPU).name == "medium"
            assert column.choose(CPU, "reference").name == "reference"
        assert column.choose(CPU).name == "reference"
    assert column.choose(CPU).name == "medium"


def test_use_backend_refuses_what_is_not_there():
    with pytest.raises(BackendError, match="there is no op 'matchcost'"), use_backend(matchcost="reference"):
        pass
    with pytest.raises(BackendError, match="match_cost has no backend 'scipy'"), use_backend(match_cost="scipy"):
        pass


def test_environment(column, monkeypatch):
    monkeypatch.setenv("DETR_FAST_BACKEND", "testing=reference, match_cost=reference")
    assert column.choose(CPU).name == "reference"
    with use_backend(testing="medium"):
        assert column.choose(CPU).name == "medium"
    monkeypatch.setenv("DETR_FAST_BACKEND", "scipy")
    assert column.choose(CPU).name == "medium"
    assert OPS["linear_sum_assignment"].choose(CPU).name == "scipy"
    monkeypatch.setenv("DETR_FAST_BACKEND", "nonsense")
    with pytest.raises(BackendError, match="no op has a backend 'nonsense'"):
        column.choose(CPU)
    monkeypatch.setenv("DETR_FAST_BACKEND", "nothing=reference")
    with pytest.raises(BackendError, match="there is no op 'nothing'"):
        column.choose(CPU)


@pytest.mark.parametrize("backend", ["cpp", "scipy"])
def test_the_backend_that_is_chosen_is_the_one_that_runs(backend, monkeypatch):
    ran = []
    chosen = OPS["linear_sum_assignment"].backends[backend]
    functions = dict(chosen.load())
    solve = functions["batch_linear_sum_assignment"]
    functions["batch_linear_sum_assignment"] = lambda *args: ran.append(backend) or solve(*args)
    spy = Backend(backend, lambda: functions, chosen.unavailable)
    monkeypatch.setitem(OPS["linear_sum_assignment"].backends, backend, spy)
    ops.batch_linear_sum_assignment(torch.rand(1, 2, 3), [2], backend=backend)
    with use_backend(linear_sum_assignment=backend):
        ops.batch_linear_sum_assignment(torch.rand(1, 2, 3), [2])
    assert ran == [backend, backend]


def test_import_is_light():
    """Neither Triton nor an extra is imported before it is used."""
    code = (
        "import sys, torch; before = set(sys.modules); import detr_fast; "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    ).stdout.split()
    extras = {"triton", "accelerate", "huggingface_hub", "safetensors", "PIL", "matplotlib", "scipy", "jsonargparse"}
    assert "detr_fast" in loaded
    assert not extras & set(loaded)

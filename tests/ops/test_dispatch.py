from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import detr_fast.backends
from detr_fast import ops, use_backend
from detr_fast.backends import cpp, triton
from detr_fast.ops import dispatch
from detr_fast.ops.batch_linear_sum_assignment import Work
from detr_fast.ops.custom_op import Differentiable
from detr_fast.ops.dispatch import OPS, BackendError, Op, register_op

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PUBLIC = [name for op in OPS.values() for name in op.public_names]


def _module(reason: str | None = None, offset: float = 0.0) -> SimpleNamespace:
    """A module of detr_fast.backends that has the op ``testing`` alone."""
    return SimpleNamespace(
        has=lambda op: op == "testing",
        unavailable=lambda op, device: reason,
        automatic=lambda device: True,
        load=lambda op: SimpleNamespace(testing=lambda value: value + offset),
    )


@pytest.fixture
def testing(monkeypatch) -> Op:
    """An op with two backends beside its reference; the first cannot run."""
    monkeypatch.setattr(dispatch, "BACKENDS", ("fast", "medium"))
    for name, module in {"fast": _module("there is no fast device"), "medium": _module(offset=1.0)}.items():
        monkeypatch.setitem(sys.modules, f"detr_fast.backends.{name}", module)
        monkeypatch.setattr(detr_fast.backends, name, module, raising=False)

    def _testing(value: float) -> float:
        return value

    monkeypatch.setitem(OPS, "testing", None)
    return register_op(aliases=("weighted_testing",))(_testing)


@pytest.fixture
def triton_is_installed(monkeypatch):
    monkeypatch.setattr(triton, "_is_installed", lambda module: True)
    Op._candidates.cache_clear()
    yield
    Op._candidates.cache_clear()


def test_every_public_function_of_an_op_is_exported():
    assert len(PUBLIC) >= 9
    for name in PUBLIC:
        assert getattr(ops, name).__name__ == name


def test_every_op_has_a_reference_and_the_solver_all_backends():
    assert all(list(op.backends)[-1] == "reference" for op in OPS.values())
    assert list(OPS["batch_linear_sum_assignment"].backends) == ["triton", "cpp", "scipy", "reference"]
    assert list(OPS["linear_sum_assignment"].backends) == ["cpp", "scipy", "reference"]
    assert list(OPS["set_loss"].backends) == ["triton", "cpp", "reference"]


def test_the_first_that_can_run_is_taken(testing):
    assert testing.choose(CPU).name == "medium"
    assert testing(1.0) == 2.0


def test_one_asked_for_runs_or_says_why_not(testing):
    assert testing(1.0, backend="reference") == 1.0
    with pytest.raises(BackendError, match="testing: backend 'fast' cannot run on cpu: there is no fast device"):
        testing(1.0, backend="fast")
    with pytest.raises(BackendError, match="has no backend 'slow'; it has fast, medium, reference"):
        testing(1.0, backend="slow")


def test_use_backend_nests_and_ends(testing):
    with use_backend(testing="reference"):
        assert testing(1.0) == 1.0
        with use_backend(testing="medium"):
            assert testing(1.0) == 2.0
            assert testing(1.0, backend="reference") == 1.0
        assert testing(1.0) == 1.0
    assert testing(1.0) == 2.0


def test_any_public_function_names_its_op(testing):
    with use_backend(weighted_testing="reference"):
        assert testing(1.0) == 1.0
    conflict = use_backend(testing="reference", weighted_testing="medium")
    with pytest.raises(BackendError, match="testing and weighted_testing are one op"), conflict:
        pass


def test_the_reference_is_chosen_for_all_functions_at_once(random_targets):
    logits, boxes, targets = torch.randn(1, 2, 6, 4), torch.rand(1, 2, 6, 4), random_targets([2, 1], 3)
    with use_backend(**dict.fromkeys(PUBLIC, "reference")):
        assert {op.choose(CPU).name for op in OPS.values()} == {"reference"}
        index = ops.batch_linear_sum_assignment(ops.match_cost(logits, boxes, targets), targets)
        assert ops.weighted_set_loss(logits, boxes, targets, index)[0].isfinite()


@pytest.mark.parametrize("name", PUBLIC)
def test_the_name_that_is_called_is_the_name_that_is_chosen(name, monkeypatch):
    with use_backend(**{name: "reference"}):
        assert dispatch.find_op(name).choose(CPU).name == "reference"
    monkeypatch.setenv("DETR_FAST_BACKEND", f"{name}=reference")
    assert dispatch.find_op(name).choose(CPU).name == "reference"


def test_use_backend_refuses_names_that_do_not_exist():
    with pytest.raises(BackendError, match="there is no op 'matchcost'"), use_backend(matchcost="reference"):
        pass
    with pytest.raises(BackendError, match="match_cost has no backend 'scipy'"), use_backend(match_cost="scipy"):
        pass


def test_environment(testing, monkeypatch):
    monkeypatch.setenv("DETR_FAST_BACKEND", "testing=reference, match_cost=reference")
    assert testing.choose(CPU).name == "reference"
    with use_backend(testing="medium"):
        assert testing.choose(CPU).name == "medium"
    monkeypatch.setenv("DETR_FAST_BACKEND", "fast")
    assert OPS["match_cost"].choose(CPU).name == "cpp"  # it has no such backend
    monkeypatch.setenv("DETR_FAST_BACKEND", "nonsense")
    with pytest.raises(BackendError, match="no op has a backend 'nonsense'"):
        testing.choose(CPU)
    monkeypatch.setenv("DETR_FAST_BACKEND", "nothing=reference")
    with pytest.raises(BackendError, match="DETR_FAST_BACKEND: there is no op 'nothing'"):
        testing.choose(CPU)


def test_one_name_in_the_environment_is_for_all_ops_that_have_it(monkeypatch):
    monkeypatch.setenv("DETR_FAST_BACKEND", "scipy")
    assert OPS["batch_linear_sum_assignment"].choose(CPU).name == "scipy"
    assert OPS["match_cost"].choose(CPU).name == "cpp"


@pytest.mark.parametrize("backend", ["cpp", "scipy", "reference"])
def test_the_backend_that_is_chosen_is_the_one_that_runs(backend, monkeypatch):
    ran = []
    chosen = OPS["batch_linear_sum_assignment"].backends[backend]
    solve = chosen.forward

    def spy(*arguments: object) -> list[Tensor]:
        ran.append(backend)
        return solve(*arguments)

    monkeypatch.setitem(chosen.__dict__, "forward", spy)
    ops.batch_linear_sum_assignment(torch.rand(1, 2, 3), [2], backend=backend)
    with use_backend(batch_linear_sum_assignment=backend):
        ops.batch_linear_sum_assignment(torch.rand(1, 2, 3), [2])
    assert ran == [backend, backend]


IN_TRITON = sorted(name for name, op in OPS.items() if "triton" in op.backends)


@pytest.mark.parametrize("name", IN_TRITON)
def test_a_gpu_is_given_triton_and_a_cpu_the_next(name, triton_is_installed):
    assert OPS[name].choose(CUDA).name == "triton"
    assert OPS[name].choose(CPU).name == list(OPS[name].backends)[1]


@pytest.mark.parametrize("name", IN_TRITON)
def test_without_triton_the_next_runs_and_triton_says_why_not(name, monkeypatch, triton_is_installed):
    monkeypatch.setattr(triton, "_is_installed", lambda module: module != "triton")
    solver = name == "batch_linear_sum_assignment"
    with pytest.warns(RuntimeWarning, match="slower backends: Triton is not installed"):
        assert OPS[name].choose(CUDA).name == ("cpp" if solver else "reference")
    with pytest.raises(BackendError, match="'triton' cannot run on cuda: Triton is not installed"):
        OPS[name].choose(CUDA, "triton")


@pytest.mark.slow
def test_without_a_c_compiler_a_gpu_is_left_to_the_next(tmp_path):
    """Triton compiles the program that launches its kernels."""
    code = (
        "import torch, detr_fast; from detr_fast.ops.dispatch import OPS\n"
        "torch.cuda.is_available = lambda: True\n"
        "print(OPS['match_cost'].choose(torch.device('cuda')).name)\n"
        "print(OPS['match_cost'].backends['triton'].refusal(torch.device('cuda')))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("CC", "TRITON_INTERPRET")}
    environment |= dict.fromkeys(("PATH", "TRITON_CACHE_DIR", "TRITON_LIBCUDA_PATH"), str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    name, reason = done.stdout.splitlines()
    assert name == "reference"
    assert reason.startswith("Triton cannot drive the GPU (Failed to find C compiler.")
    assert "it needs a C compiler such as gcc" in reason
    assert f"RuntimeWarning: detr_fast runs on slower backends: {reason}" in done.stderr


@pytest.fixture
def extension_is_not_built(monkeypatch):
    monkeypatch.setattr(cpp, "_not_built", "the extension is not built")
    Op._candidates.cache_clear()
    yield
    Op._candidates.cache_clear()


def test_without_the_extension_the_next_runs_and_cpp_says_why_not(extension_is_not_built):
    with pytest.warns(RuntimeWarning, match="detr_fast runs on slower backends: the extension is not built"):
        assert OPS["match_cost"].choose(CPU).name == "reference"
    with pytest.warns(RuntimeWarning, match="the extension is not built"):
        assert OPS["batch_linear_sum_assignment"].choose(CPU).name == "scipy"
    with pytest.raises(BackendError, match="match_cost: backend 'cpp' cannot run on cpu: the extension is not built"):
        OPS["match_cost"].choose(CPU, "cpp")


def test_other_devices_have_no_kernels():
    with pytest.raises(BackendError, match="cannot run on mps: the kernels are written for CUDA devices"):
        OPS["match_cost"].choose(torch.device("mps"), "triton")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("interpret", "answer"), [("0", "set TRITON_INTERPRET=1 before the first op runs"), ("1", "[1, 2]")]
)
def test_a_cpu_runs_triton_only_in_its_interpreter(interpret, answer):
    """The variable counts as it was when the kernels were first needed; later changes have no effect."""
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


@pytest.mark.parametrize(
    ("work", "name"),
    [
        (Work(problems=96, max_targets=20, queries=100), "triton"),  # a training step of DETR
        (Work(problems=208, max_targets=300, queries=300), "triton"),
        (Work(problems=1, max_targets=300, queries=300), "cpp"),
        (Work(problems=1, max_targets=300, queries=20), "triton"),  # the smaller side takes the steps
        (Work(problems=10_000, max_targets=10, queries=4097), "cpp"),  # too large for a program's registers
        (None, "triton"),
    ],
)
def test_which_solver_takes_problems_on_a_gpu(work, name, triton_is_installed):
    op = OPS["batch_linear_sum_assignment"]
    assert op.choose(CUDA, work=work).name == name
    assert op.choose(CPU, work=work).name == "cpp"
    assert op.choose(CUDA, "triton", work=work).name == "triton"  # a request by name takes precedence


def test_duals_come_from_the_host(triton_is_installed):
    assert OPS["batch_linear_sum_assignment"].choose(CUDA, feature="duals").name == "cpp"
    with pytest.raises(BackendError, match="it does not compute 'duals'"):
        OPS["batch_linear_sum_assignment"].choose(CPU, "scipy", feature="duals")


def test_larger_problems_need_more_of_them():
    from detr_fast.kernels import batch_linear_sum_assignment as kernels

    targets, minima = zip(*kernels._CROSSOVER, strict=True)
    assert sorted(targets) == list(targets)
    assert sorted(minima) == list(minima)
    assert targets[-1] == kernels.LARGEST_PROBLEM
    for max_targets, problems in kernels._CROSSOVER:
        assert kernels.batch_linear_sum_assignment_is_fastest(Work(problems, max_targets, 4096))
        fewer = kernels.batch_linear_sum_assignment_is_fastest(Work(problems - 1, max_targets, 4096))
        assert not fewer or problems == 1


def _wrong(factor: float, x: Differentiable) -> Tensor:
    return factor * x


def test_differentiable_arguments_come_first():
    with pytest.raises(TypeError, match="the differentiable arguments of _wrong must come first"):
        Op("wrong", _wrong)


def test_import_is_light():
    """Neither Triton nor an extra is imported before it is used."""
    code = (
        "import sys, torch; before = set(sys.modules); import detr_fast.ops, detr_fast.criterion; "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    ).stdout.split()
    extras = {"triton", "accelerate", "huggingface_hub", "safetensors", "PIL", "matplotlib", "scipy", "jsonargparse"}
    assert "detr_fast" in loaded
    assert not extras & set(loaded)

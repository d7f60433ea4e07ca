from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks import clock, peers, registry
from benchmarks.cases import criterion_cuda_graph
from benchmarks.measure import measure
from benchmarks.registry import Goal, Implementation, Unavailable, find_cases, modules, small_cases
from detr_fast.ops.dispatch import OPS

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL = [pytest.param(name, case, id=f"{name}-{case.sizes}") for name, case in small_cases(CPU)]
GOALS = {
    "cpu": {
        *(f">= {bound}x as fast as facebookresearch/detr" for bound in (3, 4)),
        ">= 1x as fast as scipy",
        ">= 1.5x as fast as RF-DETR",
        *(f">= {bound}x as fast as reference" for bound in (1, 5)),
        ">= 3x as fast as host library",
        ">= 4x as fast as RF-DETR",
        *(f">= {bound}x as fast as transformers" for bound in (1, 1.2, 1.9, 4, 6, 12)),
    },
    "cuda": {
        *(f">= {bound}x as fast as torch-hungarian" for bound in (2, 5)),
        *(f">= {bound}x as fast as RF-DETR" for bound in (4, 10)),
        *(f">= {bound}x as fast as transformers" for bound in (3, 4, 10)),
        *(f">= {bound}x as fast as reference" for bound in (1, 5, 10)),
        *(f">= {bound}x as fast as facebookresearch/detr" for bound in (4, 30)),
        ">= 1x as fast as cpp",
        ">= 0.7 of a copy's bandwidth",
        "<= 1.1x the memory of the output",
        "<= 100 us",
        "<= 300 us",
        "<= 38929 us",
    },
}


@pytest.mark.parametrize(("name", "case"), SMALL)
def test_implementations_agree_and_are_timed(name, case):
    row = measure(name, case, CPU, 0.0)
    assert row.errors == {}
    assert row.times.keys() | row.unavailable.keys() == set(case.implementations)
    if case.subject in row.unavailable:
        pytest.skip(row.unavailable[case.subject])
    assert row.ratio(case.subject) == 1
    assert all(times.p10 <= times.median <= times.p90 for times in row.times.values())
    assert row.memory.keys() == (row.times.keys() if case.has_memory else set())
    assert row.numbers.keys() == case.numbers.keys()


@pytest.mark.parametrize("name", ["match_cost", "sine_position_encoding"])
def test_the_numbers_of_a_gpu_can_be_computed(name, monkeypatch):
    monkeypatch.setattr(f"benchmarks.cases.{name}.{NUMBERS[name]}", lambda *arguments: 2**20)
    case = modules()[name].case(CUDA, *modules()[name].SMALL[0])
    inputs = modules()[name].case(CPU, *modules()[name].SMALL[0]).inputs()
    (compute,) = case.numbers.values()
    assert compute(inputs, clock.Times(10, 9, 11)) > 0


NUMBERS = {"match_cost": "peak_memory", "sine_position_encoding": "copy_bandwidth"}


def test_copy_bandwidth(monkeypatch):
    monkeypatch.setattr(clock, "COPIED", 2**20)
    assert clock.copy_bandwidth.__wrapped__(CPU) > 0


def test_every_op_has_a_case_with_all_its_backends():
    for name, op in OPS.items():
        measured = {backend for _, case in find_cases(CPU, [name]) for backend in case.implementations}
        assert measured >= set(op.backends), name


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_cases_have_distinct_names_and_stated_goals(device):
    cases = list(find_cases(device))
    assert len({(name, case.sizes, case.protocol) for name, case in cases}) == len(cases)
    assert {str(goal) for _, case in cases for goal in case.goals} == GOALS[device.type]
    for name, case in cases:
        assert case.subject in case.implementations, name
        assert {goal.over for goal in case.goals if goal.over} <= case.implementations.keys(), name


def test_solver_and_criterion_are_measured_with_cold_caches():
    names = ["batch_linear_sum_assignment", "linear_sum_assignment", "matcher", "criterion"]
    for name in names:
        protocols = [case.protocol for _, case in find_cases(CPU, [name])]
        assert protocols.count("cold") >= protocols.count("hot"), name


def test_cases_of_a_gpu_are_not_measured_on_a_cpu():
    names = {name for name, _ in find_cases(CPU)}
    assert {"criterion_cuda_graph", "solver_on_gpu"} <= modules().keys() - names
    assert {name for name, _ in find_cases(CUDA)} == modules().keys() - {"linear_sum_assignment", "loader"}


def test_an_unknown_case_is_refused():
    with pytest.raises(ValueError, match="there is no case unknown; the cases are batch_linear_sum_assignment,"):
        list(find_cases(CPU, ["unknown"]))


def test_the_step_of_the_graph_takes_other_targets_than_it_was_captured_with():
    case = criterion_cuda_graph.case(CPU, 2, 3, 12)
    inputs = case.inputs()
    case.prepare("CUDA graph", inputs, case.expected(inputs))


def test_memory_that_is_held_counts(make_case):
    implementations = {
        "fast": lambda x: Implementation(lambda: x + 1, held=2**40),
        "peer": lambda x: Implementation(lambda: x + 1),
    }
    row = measure("a", make_case(implementations=implementations, has_memory=True, goals=()), CPU)
    assert row.memory["fast"] >= 2**40 > row.memory["peer"]


def test_an_implementation_that_disagrees_is_not_timed(make_case):
    case = make_case()
    wrong = {**case.implementations, "peer": lambda x: Implementation(lambda: x)}
    row = measure("op", make_case(implementations=wrong), CPU, 0.0)
    assert row.times.keys() == {"fast"}
    assert row.errors.keys() == {"peer"}
    assert row.errors["peer"].startswith("AssertionError: Tensor-likes are not close!")


def test_an_error_of_the_inputs_is_the_rows(make_case):
    def inputs():
        raise MemoryError("too large")

    row = measure("op", make_case(inputs=inputs), CPU, 0.0)
    assert (row.times, row.errors) == ({}, {"inputs": "MemoryError: too large"})


def test_faults_that_kernels_reported_are_the_rows(make_case, monkeypatch):
    def raise_faults():
        raise ValueError("image 1: the matching cost is NaN")

    monkeypatch.setattr("benchmarks.measure.raise_faults", raise_faults)
    row = measure("op", make_case(), CPU, 0.0)
    assert row.times == {}
    assert set(row.errors.values()) == {"ValueError: image 1: the matching cost is NaN"}


@pytest.mark.parametrize(
    ("name", "sizes", "missing"),
    [
        ("match_cost", ("rf_detr", 2, 3, 7), {"RF-DETR"}),
        ("solver_on_gpu", ("uniform", 2, 3, 5), {"torch-hungarian"}),
        ("criterion", ("detr", 6, 2, 12), {"transformers"}),
        ("integrations", ("RF-DETR", 2, 12), {"accelerated", "host library"}),
    ],
)
def test_a_library_that_is_missing_is_reported(name, sizes, missing, monkeypatch):
    find_spec, hidden = peers.importlib.util.find_spec, ("rfdetr", "torch_linear_assignment", "transformers")
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None if name in hidden else find_spec(name))
    row = measure(name, modules()[name].case(CPU, *sizes), CPU, 0.0)
    assert missing <= row.unavailable.keys()
    assert all("is not installed (pip install" in row.unavailable[implementation] for implementation in missing)
    assert row.errors == {}
    assert not missing & {goal.over for goal in row.missed}


def test_a_backend_that_cannot_run_gives_its_reason(monkeypatch):
    monkeypatch.setattr(OPS["match_cost"].backends["cpp"], "refusal", lambda device: "it is not built")
    with pytest.raises(Unavailable, match="it is not built"):
        registry.backends("match_cost", CPU, pytest.fail)["cpp"](None)


def test_cold_calls_follow_a_flush_and_hot_calls_another_call(monkeypatch):
    events: list[str] = []
    monkeypatch.setattr(clock.CpuClock, "flush", lambda self: events.append("flush"))
    calls = {name: partial(events.append, name) for name in "ab"}
    clock.interleaved(calls, CPU, "cold", 0.0)
    assert events == ["flush", "a", "flush", "b"] * 4
    events.clear()
    clock.interleaved(calls, CPU, "hot", 0.0)
    assert events == ["a", "a", "b", "b"] * 4


def test_a_flush_writes_twice_the_largest_cache(tmp_path, monkeypatch):
    assert clock.CpuClock()._buffer.nbytes == clock.FLUSHED  # the sizes of the caches are unknown
    for index, size in enumerate(("32K", "512K", "107520K")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert clock.largest_cache() == 107520 * 1024
    assert clock.CpuClock()._buffer.nbytes == 2 * 107520 * 1024


def test_peak_memory_is_that_of_the_call():
    peak = clock.peak_memory(lambda: torch.ones(2**24).sum(), CPU)
    assert 2**26 - 2**21 <= peak < 2**26 + 2**23


@pytest.mark.parametrize(
    ("goal", "value", "is_met"),
    [
        (Goal("ratio", 10, "peer"), 10.0, True),
        (Goal("ratio", 10, "peer"), 9.9, False),
        (Goal("us", 100), 100.0, True),
        (Goal("us", 100), 101.0, False),
        (Goal("memory", 1.1), 1.2, False),
        (Goal("bandwidth", 0.7), 0.8, True),
        (Goal("bandwidth", 0.7), float("nan"), False),
        (Goal("us", 100), float("nan"), False),
    ],
)
def test_goals(goal, value, is_met):
    assert goal.is_met(value) is is_met

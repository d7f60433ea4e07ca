from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from triton.runtime.interpreter import InterpretedFunction

from benchmarks import gpu_checks, gpu_op_cases, gpu_report, gpu_rows, gpu_step_cases, gpu_timing, peers
from benchmarks.gpu_checks import Check
from benchmarks.gpu_rows import Case, Goal, Row, Sides, measure
from benchmarks.gpu_timing import Times
from benchmarks.launch_kernels import launch_kernels

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
MACHINE = {
    "device": "NVIDIA H100 80GB HBM3",
    "cuda": "13.0",
    "versions": {"torch": "2.13.0", "rfdetr": "not installed"},
    "commit": "0123456789abcdef",
    "dirty": True,
}
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter is off where there is a GPU")


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch):
    monkeypatch.setattr(gpu_timing, "SECONDS", 0.0)


def _row(what: str = "a", **numbers: float) -> Row:
    goals = (Goal("ratio", at_least=10), Goal("us", at_most=100))
    return Row("op", what, "peer", goals, Times(90, 80, 120), Times(9000, 8000, 9500), numbers)


def test_without_a_gpu_it_says_so_and_fails():
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.gpu_report"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 1
    assert done.stderr == "There is no GPU that torch can use, and nothing was measured.\n"


@interpreted
@pytest.mark.parametrize(
    ("build", "more"),
    [
        (partial(gpu_op_cases.sine, 1, 2), ["bandwidth"]),
        (partial(gpu_op_cases.match_cost, "original", 2, 3, 7), []),
        (partial(gpu_op_cases.match_cost, "rfdetr", 2, 3, 7), []),
        (partial(gpu_op_cases.solver_of_equal_sizes, 2, 3, 5), []),
        (partial(gpu_op_cases.solver_of_equal_sizes, 2, 7, 5), []),
        (partial(gpu_op_cases.solver_of_a_step, 1, 2, 20), []),
        (partial(gpu_op_cases.solver_crossover, "untrained", 2, 4, 9), []),
        (partial(gpu_step_cases.criterion_of, "DETR", 6, 2, 12), []),
        (partial(gpu_step_cases.criterion_of, "RF-DETR", 6, 2, 12), []),
        (partial(gpu_step_cases.integration, "Deformable DETR", 2, 12), []),
        (partial(gpu_step_cases.integration, "RF-DETR", 2, 12), []),
    ],
)
def test_both_sides_agree_and_are_timed(build, more, monkeypatch):
    monkeypatch.setattr(gpu_timing, "COPIED", 2**20)
    row = measure(Case("op", "small", "peer", build), CPU)
    if row.not_measured:
        pytest.skip(row.not_measured)
    assert row.error == ""
    assert row.numbers["ratio"] == row.theirs.median / row.ours.median
    assert row.ours.p10 <= row.ours.median <= row.ours.p90
    assert set(row.numbers) == {"ratio", "us", *more}


def test_the_step_of_the_graph_agrees():
    sides = gpu_step_cases.criterion_in_a_graph(2, 3, 12, CPU)
    sides.check()


def test_every_case_has_a_name_of_its_own_and_can_be_built():
    cases = list(gpu_report.all_cases())
    assert len({(case.table, case.what, case.peer) for case in cases}) == len(cases)
    assert {str(goal) for case in cases for goal in case.goals} == {
        *(f">= {n}x as fast" for n in (1, 2, 4, 5, 10, 30)),
        ">= 0.7 of a copy's bandwidth",
        "<= 1.1x the output",
        "<= 100 us",
        "<= 300 us",
    }


@pytest.mark.parametrize(
    ("numbers", "missed"),
    [
        ({"ratio": 10.0, "us": 100.0}, []),
        ({"ratio": 9.9, "us": 90.0}, [">= 10x as fast"]),
        ({"ratio": 11.0, "us": 101.0}, ["<= 100 us"]),
        ({"us": 90.0}, [">= 10x as fast"]),  # what was not measured is not met
    ],
)
def test_the_judge(numbers, missed):
    row = _row(**numbers)
    assert row.missed == missed
    assert gpu_report.failures([], [row]) == [f"op, a, against peer: missed {goal}" for goal in missed]


def test_sides_that_disagree_are_not_timed():
    def check():
        torch.testing.assert_close(torch.tensor(1.0), torch.tensor(2.0))

    def build(device):
        return Sides(pytest.fail, pytest.fail, check)

    row = measure(Case("op", "a", "peer", build, (Goal("ratio", at_least=1),)), CPU)
    assert row.error.startswith("AssertionError: Scalars are not close!")
    assert row.missed == []
    assert gpu_report.failures([], [row]) == [f"op, a, against peer: {row.error}"]


@pytest.mark.parametrize(
    "build",
    [
        partial(gpu_op_cases.match_cost, "rfdetr", 2, 3, 7),
        partial(gpu_op_cases.solver_of_equal_sizes, 2, 3, 5),
        partial(gpu_step_cases.criterion_of, "DETR", 6, 2, 12),
        partial(gpu_step_cases.integration, "RF-DETR", 2, 12),
    ],
)
def test_a_peer_that_is_missing_is_reported(build, monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    row = measure(Case("op", "a", "peer", build, (Goal("ratio", at_least=10),)), CPU)
    assert "is not installed (pip install" in row.not_measured
    assert gpu_report.failures([], [row]) == []
    assert f"not measured: {row.not_measured}" in gpu_report.as_markdown(MACHINE, [], [row])


def test_when_the_time_is_up_the_rest_is_reported_as_not_measured():
    rows = list(gpu_report.measure_all(gpu_report.all_cases(), CPU, until=0))
    assert len(rows) == len(list(gpu_report.all_cases()))
    assert {row.not_measured for row in rows} == {"the time was up"}


def test_what_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_report, "RESULTS", tmp_path)
    found = [
        Check("tests", True, "3 passed"),
        Check("sanitizer", None, "not on PATH"),
        Check("waits", False, "it does"),
    ]
    rows = [_row(ratio=100.0, us=90.0), _row("b", ratio=2.0, us=90.0), Row("other", "c", "peer", error="it broke")]
    gpu_report.write(MACHINE, found, rows)
    assert {path.name for path in tmp_path.iterdir()} == {"nvidia_h100_80gb_hbm3.json", "nvidia_h100_80gb_hbm3.md"}
    written = json.loads((tmp_path / "nvidia_h100_80gb_hbm3.json").read_text())
    assert written["machine"] == MACHINE
    assert [check["passed"] for check in written["checks"]] == [True, None, False]
    assert [row["missed"] for row in written["rows"]] == [[], [">= 10x as fast"], []]
    assert written["rows"][0]["ours"] == {"median": 90, "p10": 80, "p90": 120}
    assert written["rows"][0]["numbers"] == {"ratio": 100.0, "us": 90.0}
    lines = (tmp_path / "nvidia_h100_80gb_hbm3.md").read_text().splitlines()
    assert lines[0] == (
        "NVIDIA H100 80GB HBM3, CUDA 13.0, torch 2.13.0, rfdetr not installed, commit 012345678 with changes"
    )
    assert "| sanitizer | not run | not on PATH |" in lines
    assert (
        "| b | peer | 90 (80 to 120) | 9000 (8000 to 9500) | 2 | >= 10x as fast: missed (2), <= 100 us: met (90) |"
        in lines
    )
    assert "| c | peer | failed: it broke | | | |" in [" ".join(line.split()) for line in lines]
    assert gpu_report.failures(found, rows) == [
        "waits: it does",
        "op, b, against peer: missed >= 10x as fast",
        "other, c, against peer: it broke",
    ]


@interpreted
def test_every_kernel_is_launched(monkeypatch):
    launched = set()
    launch = InterpretedFunction.run

    def record(self, *arguments, **options):
        launched.add(self.fn.__name__)
        return launch(self, *arguments, **options)

    monkeypatch.setattr(InterpretedFunction, "run", record)
    launch_kernels(CPU)
    named = [line for path in (ROOT / "kernels").glob("*.py") for line in path.read_text().splitlines()]
    kernels = {line.removeprefix("def ").partition("(")[0] for line in named if line.startswith("def ")}
    assert launched == {name for name in kernels if name.endswith("_kernel")}


@pytest.mark.parametrize(
    ("test", "passed"),
    [("def test(): pass", True), ("def test(): assert 0", False), ("import pytest\ndef test(): pytest.skip()", False)],
)
def test_tests_have_to_run_and_to_pass(test, passed, tmp_path):
    (tmp_path / "test_one.py").write_text(test)
    check = gpu_checks.run_tests(["-p", "no:cacheprovider", str(tmp_path)])
    assert check.passed is passed
    assert ("1 passed" in check.detail) is passed


@pytest.mark.parametrize(("code", "passed"), [(0, True), (9, False)])
def test_a_sanitizer_is_judged_by_its_exit_status(code, passed, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_checks.sanitize("memcheck").passed is None
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\necho '========= ERROR SUMMARY: {code} errors'\nexit {code}\n")
    tool.chmod(0o755)
    check = gpu_checks.sanitize("memcheck")
    assert (check.passed, check.detail) == (passed, f"ERROR SUMMARY: {code} errors")


def test_a_step_that_waits_fails_the_check_and_the_mode_is_put_back(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def step():
        if modes == ["error"]:
            raise RuntimeError("called a synchronizing CUDA operation")

    check = gpu_checks._does_not_wait("step", step)
    assert (check.passed, check.detail) == (False, "RuntimeError: called a synchronizing CUDA operation")
    assert modes == ["error", "default"]
    modes.clear()
    assert all(check.passed for check in gpu_checks.nothing_waits(CPU))


def test_faults_that_kernels_reported_are_the_rows(monkeypatch):
    def raise_faults():
        raise ValueError("image 1: the matching cost contains NaN")

    monkeypatch.setattr(gpu_rows, "_raise_faults", raise_faults)
    build = lambda device: Sides(lambda: None, lambda: None, lambda: None)  # noqa: E731
    assert measure(Case("op", "a", "peer", build), CPU).error == "ValueError: image 1: the matching cost contains NaN"


@pytest.mark.parametrize(("ratio", "status"), [(100.0, 0), (2.0, 1)])
def test_the_exit_status_and_what_is_printed(ratio, status, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(gpu_report, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu_report, "describe_machine", lambda device: MACHINE)
    monkeypatch.setattr(gpu_report, "checks", lambda device: iter([Check("tests", True, "3 passed")]))
    monkeypatch.setattr(gpu_report, "measure", lambda case, device: _row(case.what, ratio=ratio, us=90.0))
    monkeypatch.setattr(gpu_report, "all_cases", lambda: iter([Case("op", "first", "peer", pytest.fail)]))
    assert gpu_report.main() == status
    printed = capsys.readouterr().out
    assert (tmp_path / "nvidia_h100_80gb_hbm3.md").read_text() in printed
    assert ("op, first, against peer: missed >= 10x as fast" in printed) == (status == 1)

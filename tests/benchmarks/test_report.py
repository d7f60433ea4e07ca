from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import report
from benchmarks.clock import Times
from benchmarks.gpu_checks import Check
from benchmarks.machine import describe_machine, slug
from benchmarks.registry import Goal, Row, find_cases, modules

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
MACHINE = {
    "device": "NVIDIA H100 80GB HBM3",
    "cuda": "13.0",
    "versions": {"torch": "2.13.0", "rfdetr": "not installed"},
    "commit": "0123456789abcdef",
    "dirty": True,
}
GOALS = (Goal("ratio", 10, "peer"), Goal("us", 100))


@pytest.fixture(autouse=True)
def _results(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    yield
    torch.set_num_threads(threads)


def _row(sizes: str = "a", ratio: float = 100.0, us: float = 90.0, **changed) -> Row:
    times = {"triton": Times(us, 80, 120), "peer": Times(ratio * us, 8000, 9500)}
    return Row("op", sizes, "cold", "triton", **{"goals": GOALS, "times": times, **changed})


@pytest.mark.parametrize(
    ("ratio", "us", "missed"),
    [(10.0, 100.0, []), (9.9, 90.0, [">= 10x as fast as peer"]), (11.0, 101.0, ["<= 100 us"])],
)
def test_goals_that_are_missed(ratio, us, missed):
    row = _row(ratio=ratio, us=us)
    assert [str(goal) for goal in row.missed] == missed
    assert report.failures([], [row]) == [f"op, a: missed {goal}" for goal in missed]


def test_a_number_without_a_value_is_missed_and_a_goal_about_what_was_not_measured_is_not():
    bandwidth = Goal("bandwidth", 0.7)
    assert _row(goals=(bandwidth,)).missed == [bandwidth]
    assert _row(times={"triton": Times(90, 80, 120)}).missed == []
    assert _row(times={"peer": Times(90, 80, 120)}, goals=(*GOALS, bandwidth)).missed == []


def test_what_is_written(tmp_path):
    found = [
        Check("tests", True, "3 passed"),
        Check("sanitizer", None, "not on PATH"),
        Check("synchronization", False, "it does"),
    ]
    rows = [
        _row(memory={"triton": 2**20, "peer": 2**21}, numbers={"bandwidth": 0.8}),
        _row("b", ratio=2.0),
        Row("other", "c", "hot", "triton", GOALS, unavailable={"peer": "it is missing"}, errors={"triton": "it broke"}),
    ]
    report.write(MACHINE, found, rows)
    assert {path.name for path in tmp_path.iterdir()} == {"nvidia_h100_80gb_hbm3.json", "nvidia_h100_80gb_hbm3.md"}
    written = json.loads((tmp_path / "nvidia_h100_80gb_hbm3.json").read_text())
    assert written["machine"] == MACHINE
    assert [check["passed"] for check in written["checks"]] == [True, None, False]
    assert [row["missed"] for row in written["rows"]] == [[], [">= 10x as fast as peer"], []]
    assert written["rows"][0]["goals"] == [">= 10x as fast as peer", "<= 100 us"]
    assert written["rows"][0]["times"]["triton"] == {"median": 90, "p10": 80, "p90": 120}
    assert written["rows"][0]["numbers"] == {"bandwidth": 0.8}
    lines = (tmp_path / "nvidia_h100_80gb_hbm3.md").read_text().splitlines()
    assert lines[0] == (
        "NVIDIA H100 80GB HBM3, cuda 13.0, commit 012345678 with changes, torch 2.13.0, rfdetr not installed"
    )
    assert "| sanitizer | not run | not on PATH |" in lines
    assert "| sizes | caches | time | peer | goals |" in lines
    goals = ">= 10x as fast as peer: {} ({}); <= 100 us: met (90)"
    assert f"| a | cold | triton: 90 (80 to 120), 1 MiB | 100, 2 MiB | {goals.format('met', 100)} |" in lines
    assert f"| b | cold | triton: 90 (80 to 120) | 2 | {goals.format('missed', 2)} |" in lines
    goals = ">= 10x as fast as peer: not measured; <= 100 us: not measured"
    assert f"| c | hot | triton: not measured | {goals} |" in lines
    assert "- Not measured: peer: it is missing." in lines
    assert "- Failed: triton: it broke." in lines
    assert report.failures(found, rows) == [
        "synchronization: it does",
        "op, b: missed >= 10x as fast as peer",
        "other, c: triton: it broke",
    ]


def test_when_the_time_is_up_the_rest_is_reported_as_not_measured():
    rows = list(report.measure_all(find_cases(CPU), CPU, 0.0, until=0))
    assert len(rows) == len(list(find_cases(CPU)))
    assert {reason for row in rows for reason in row.unavailable.values()} == {"the time was up"}
    assert report.failures([], rows) == []


@pytest.mark.parametrize(("ratio", "status"), [(100.0, 0), (2.0, 1)])
def test_the_exit_status_and_what_is_printed(ratio, status, tmp_path, monkeypatch, capsys, make_case):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(report, "describe_machine", lambda device: MACHINE)
    monkeypatch.setattr(report, "checks", lambda device: iter([Check("tests", True, "3 passed")]))
    monkeypatch.setattr(report, "measure", lambda name, case, device, seconds: _row(case.sizes, ratio=ratio))
    monkeypatch.setattr(report, "find_cases", lambda device, only: iter([("op", make_case(sizes="first"))]))
    assert report.main([]) == status
    printed = capsys.readouterr().out
    assert "| tests | passed | 3 passed |" in printed
    assert (tmp_path / "nvidia_h100_80gb_hbm3.md").read_text() in printed
    assert ("op, first: missed >= 10x as fast as peer" in printed) == (status == 1)


def test_a_check_that_failed_is_the_exit_status(monkeypatch, capsys, make_case):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(report, "describe_machine", lambda device: MACHINE)
    monkeypatch.setattr(report, "checks", lambda device: iter([Check("tests", False, "1 failed")]))
    monkeypatch.setattr(report, "find_cases", lambda device, only: iter(()))
    assert report.main([]) == 1
    assert "tests: 1 failed" in capsys.readouterr().out


def test_one_case_from_end_to_end(tmp_path, monkeypatch, capsys, make_case):
    monkeypatch.setattr(report, "find_cases", lambda device, only: iter([("op", make_case(goals=()))]))
    assert report.main(["--device", "cpu", "--quick"]) == 0
    (path,) = tmp_path.glob("*.json")
    assert path.stem == slug(describe_machine(CPU)["device"])
    (row,) = json.loads(path.read_text())["rows"]
    assert row["times"].keys() == {"fast", "peer"}
    assert path.with_suffix(".md").read_text() in capsys.readouterr().out


def test_some_cases_do_not_replace_the_results(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "measure", lambda *arguments: _row())
    assert report.main(["--device", "cpu", "--only", "pairwise_box_l1"]) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_list_names_every_case(device, capsys):
    assert report.main(["--list", "--device", device]) == 0
    lines = capsys.readouterr().out.splitlines()
    cases = list(find_cases(torch.device(device)))
    assert len(lines) == len(cases)
    assert {line.partition(":")[0] for line in lines} == {name for name, _ in cases}
    assert report.main(["--list", "--only", "criterion"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(modules()["criterion"].SIZES)


def test_without_a_gpu_the_report_of_a_gpu_fails():
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.report", "--device", "cuda"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 1
    assert done.stderr == "There is no GPU that torch can use, and nothing was measured.\n"

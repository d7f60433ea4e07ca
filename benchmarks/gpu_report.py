"""Everything that only a GPU can tell: ``python -m benchmarks.gpu_report``, in less than ten minutes.

Runs the tests marked gpu, compute-sanitizer and the check that nothing waits for the device; then times every hot path
against others, in turns, after checking that they agree. Writes benchmarks/results/DEVICE.json and DEVICE.md and exits
with 1 if a test, a check or a row fails, or a goal is missed. A peer that is not installed is "not measured". The files
are written anew after each row, so that a run which is cut short leaves what it had.

All peers: ``pip install '.[test,bench]'``, and RF-DETR beside the torch that is there, without its own wishes for one:
``pip install --no-deps -r tests/integrations/peers.txt``.
"""

from __future__ import annotations

import json
import math
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_op_cases, gpu_step_cases
from benchmarks.gpu_checks import Check, checks
from benchmarks.gpu_rows import Case, Row, measure
from benchmarks.gpu_timing import Times
from detr_fast.info import package_version

RESULTS = Path(__file__).parent / "results"
SECONDS = 540  # after which no further row is begun
PACKAGES = ("torch", "triton", "numpy", "scipy", "transformers", "rfdetr", "torch-hungarian")


def all_cases() -> Iterator[Case]:
    yield from gpu_op_cases.cases()
    yield from gpu_step_cases.cases()
    yield from gpu_step_cases.integration_cases()
    yield from gpu_op_cases.crossover_cases()


def measure_all(cases: Iterable[Case], device: torch.device, until: float) -> Iterator[Row]:
    for case in cases:
        row = Row(case.table, case.what, case.peer, case.goals, not_measured="the time was up")
        yield measure(case, device) if time.monotonic() < until else row


def describe_machine(device: torch.device) -> dict[str, Any]:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return {
        "device": torch.cuda.get_device_name(device),
        "driver": _output(query).partition("\n")[0],
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": {package: package_version(package) for package in PACKAGES},
        "commit": _output(["git", "rev-parse", "HEAD"]),
        "dirty": bool(_output(["git", "status", "--porcelain"])),
    }


def _output(command: Sequence[str]) -> str:
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, cwd=RESULTS.parent).stdout.strip()


def failures(found: Iterable[Check], rows: Iterable[Row]) -> list[str]:
    """What went wrong, a line for each."""
    lines = [f"{check.name}: {check.detail}" for check in found if check.passed is False]
    for row in rows:
        wrong = [row.error] if row.error else [f"missed {goal}" for goal in row.missed]
        lines += [f"{row.table}, {row.what}, against {row.peer}: {reason}" for reason in wrong]
    return lines


def as_json(machine: dict[str, Any], found: Sequence[Check], rows: Sequence[Row]) -> str:
    def one(row: Row) -> dict[str, Any]:
        return {**asdict(replace(row, goals=())), "goals": [str(goal) for goal in row.goals], "missed": row.missed}

    results = {"machine": machine, "checks": [asdict(check) for check in found], "rows": [one(row) for row in rows]}
    return json.dumps(results, indent=1) + "\n"


def as_markdown(machine: dict[str, Any], found: Sequence[Check], rows: Sequence[Row]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    dirty = " with changes" if machine["dirty"] else ""
    lines = [f"{machine['device']}, CUDA {machine['cuda']}, {versions}, commit {machine['commit'][:9]}{dirty}"]
    lines += ["", "| check | | |", "|---|---|---|"]
    outcome = {True: "passed", False: "failed", None: "not run"}
    lines += [f"| {check.name} | {outcome[check.passed]} | {check.detail} |" for check in found]
    for table, of_table in groupby(rows, key=lambda row: row.table):
        lines += ["", f"{table}; microseconds, median (10th to 90th percentile)", ""]
        lines += ["| | against | ours | theirs | theirs / ours | goal |", "|---|---|---|---|---|---|"]
        lines += [_line(row) for row in of_table]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    if row.ours is None or row.theirs is None:
        reason = f"failed: {row.error}" if row.error else f"not measured: {row.not_measured}"
        goals = ", ".join(str(goal) for goal in row.goals)
        return f"| {row.what} | {row.peer} | {reason} | | | {goals} |"
    goals = ", ".join(
        f"{goal}: {'met' if goal.met(row.numbers) else 'missed'} ({row.numbers.get(goal.number, math.nan):.3g})"
        for goal in row.goals
    )
    ratio = f"{row.numbers['ratio']:.3g}"
    return f"| {row.what} | {row.peer} | {_interval(row.ours)} | {_interval(row.theirs)} | {ratio} | {goals} |"


def _interval(times: Times) -> str:
    return f"{times.median:.4g} ({times.p10:.4g} to {times.p90:.4g})"


def write(machine: dict[str, Any], found: Sequence[Check], rows: Sequence[Row]) -> None:
    path = RESULTS / slug(machine["device"])
    path.with_suffix(".json").write_text(as_json(machine, found, rows))
    path.with_suffix(".md").write_text(as_markdown(machine, found, rows))


def slug(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")


def main() -> int:
    if not torch.cuda.is_available():
        print("There is no GPU that torch can use, and nothing was measured.", file=sys.stderr)
        return 1
    until, device = time.monotonic() + SECONDS, torch.device("cuda", torch.cuda.current_device())
    machine, found, rows = describe_machine(device), [], []
    for result in chain(checks(device), measure_all(all_cases(), device, until)):
        (found if isinstance(result, Check) else rows).append(result)
        write(machine, found, rows)
        print(".", end="", flush=True)
    wrong = failures(found, rows)
    print("\n" + as_markdown(machine, found, rows))
    print("\n".join(wrong) or "Every check passed, and every goal that was measured is met.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

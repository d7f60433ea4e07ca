"""Measure the cases of ``benchmarks/cases`` on the device of this machine, a GPU if there is one.

Each implementation is checked before it is timed; the implementations of a case are timed in one interleaved run, on
a CPU with one thread unless the case says otherwise. On a GPU the tests marked gpu, compute-sanitizer and a check for
synchronizations run first. The results are written to benchmarks/results/DEVICE.json and DEVICE.md after each case, so
that a run which is interrupted leaves what it has measured; a run with --only writes nothing. The exit status is 1 if a
check failed or a goal was missed. An implementation that is not installed is reported as not measured.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from benchmarks import clock
from benchmarks.gpu_checks import Check, checks
from benchmarks.machine import describe_machine, slug
from benchmarks.measure import measure
from benchmarks.registry import Case, Goal, Row, find_cases, modules

RESULTS = Path(__file__).parent / "results"
GPU_SECONDS = 540  # after which no further case is begun on a GPU
OUTCOMES = {True: "passed", False: "failed", None: "not run"}


def measure_all(cases: Iterable[tuple[str, Case]], device: torch.device, seconds: float, until: float) -> Iterator[Row]:
    """Measure the cases one after the other; those that ``until`` leaves no time for are not measured."""
    for name, case in cases:
        if time.monotonic() < until:
            yield measure(name, case, device, seconds)
        else:
            late = dict.fromkeys(case.implementations, "the time was up")
            yield Row(name, case.sizes, case.protocol, case.subject, case.goals, unavailable=late)


def failures(found: Iterable[Check], rows: Iterable[Row]) -> list[str]:
    """Return a line for each check that failed, each error and each goal that was missed."""
    lines = [f"{check.name}: {check.detail}" for check in found if check.passed is False]
    for row in rows:
        what = [f"{implementation}: {error}" for implementation, error in row.errors.items()]
        lines += [f"{row.name}, {row.sizes}: {line}" for line in (*what, *(f"missed {goal}" for goal in row.missed))]
    return lines


def as_json(machine: dict[str, Any], found: Sequence[Check], rows: Sequence[Row]) -> str:
    """Return everything that was measured."""

    def one(row: Row) -> dict[str, Any]:
        goals = {"goals": [str(goal) for goal in row.goals], "missed": [str(goal) for goal in row.missed]}
        return asdict(row) | goals

    results = {"machine": machine, "checks": [asdict(check) for check in found], "rows": [one(row) for row in rows]}
    return json.dumps(results, indent=1) + "\n"


def as_markdown(machine: dict[str, Any], found: Sequence[Check], rows: Sequence[Row]) -> str:
    """Return a table of the checks, and one for each op or step."""
    described = {
        "commit": f"{machine['commit'][:9]}{' with changes' if machine['dirty'] else ''}",
        **machine["versions"],
    }
    left_out = ("device", "versions", "commit", "dirty")
    described = {key: value for key, value in machine.items() if key not in left_out} | described
    lines = [", ".join([machine["device"], *(f"{name} {value}" for name, value in described.items())])]
    if found:
        lines += ["", "| check | outcome | detail |", "|---|---|---|"]
        lines += [f"| {check.name} | {OUTCOMES[check.passed]} | {check.detail} |" for check in found]
    lines += ["", "Times are medians (10th to 90th percentile) in microseconds per call. Other implementations are"]
    lines += ["given as their time divided by that of the implementation in the third column."]
    for name, of_name in groupby(rows, key=lambda row: row.name):
        lines += ["", f"## {name}", "", *_table(list(of_name))]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Row]) -> list[str]:
    others = list(dict.fromkeys(name for row in rows for name in row.times if name != row.subject))
    header = ["sizes", "caches", "time", *others, "goals"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for row in rows:
        cells = [row.sizes, row.protocol, _time(row), *(_ratio(row, name) for name in others)]
        lines.append(f"| {' | '.join([*cells, '; '.join(_outcome(row, goal) for goal in row.goals)])} |")
    notes = [("Not measured", row.unavailable) for row in rows] + [("Failed", row.errors) for row in rows]
    noted = dict.fromkeys(f"{what}: {name}: {reason}." for what, of_row in notes for name, reason in of_row.items())
    return [*lines, *([""] if noted else []), *(f"- {note}" for note in noted)]


def _time(row: Row) -> str:
    if row.subject not in row.times:
        return f"{row.subject}: not measured"
    times = row.times[row.subject]
    return f"{row.subject}: {times.median:.4g} ({times.p10:.4g} to {times.p90:.4g}){_memory(row, row.subject)}"


def _ratio(row: Row, name: str) -> str:
    if name not in row.times:
        return ""
    if row.subject not in row.times:
        return f"{row.times[name].median:.4g} us"
    return f"{row.ratio(name):.3g}{_memory(row, name)}"


def _memory(row: Row, name: str) -> str:
    return f", {row.memory[name] / 2**20:.3g} MiB" if name in row.memory else ""


def _outcome(row: Row, goal: Goal) -> str:
    value = row.value(goal)
    if value is None:
        return f"{goal}: not measured"
    return f"{goal}: {'met' if goal.is_met(value) else 'missed'} ({value:.3g})"


def write(machine: dict[str, Any], found: Sequence[Check], rows: Sequence[Row]) -> None:
    """Write both files of the results."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / slug(machine["device"])
    path.with_suffix(".json").write_text(as_json(machine, found, rows))
    path.with_suffix(".md").write_text(as_markdown(machine, found, rows))


def print_list(cases: Iterable[tuple[str, Case]]) -> None:
    """Print the name, the sizes, the implementations and the goals of each case."""
    for name, case in cases:
        goals = "".join(f"; {goal}" for goal in case.goals)
        print(f"{name}: {case.sizes}, {case.protocol}: {', '.join(case.implementations)}{goals}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the report, and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default, help=f"default: {default}")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        choices=tuple(modules()),
        default=(),
        help="modules of benchmarks/cases; default: all",
    )
    parser.add_argument("--quick", action="store_true", help="spend a tenth of the time on each case")
    parser.add_argument("--list", action="store_true", help="print the cases, and measure nothing")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if options.list:
        print_list(find_cases(device, options.only))
        return 0
    if device.type == "cuda" and not torch.cuda.is_available():
        print("There is no GPU that torch can use, and nothing was measured.", file=sys.stderr)
        return 1
    on_cuda = device.type == "cuda"
    until = time.monotonic() + GPU_SECONDS if on_cuda else math.inf
    torch.set_num_threads(1)
    machine, found, rows = describe_machine(device), [], []
    seconds = clock.SECONDS / 10 if options.quick else clock.SECONDS
    for check in checks(device) if on_cuda and not options.only else ():
        found.append(check)
        _progress(check.name)
    for row in measure_all(find_cases(device, options.only), device, seconds, until):
        rows.append(row)
        _progress(f"{row.name}, {row.sizes}")
        if not options.only:
            write(machine, found, rows)
    wrong = failures(found, rows)
    print(as_markdown(machine, found, rows))
    print("\n".join(wrong) or "Every check passed, and every goal that was measured is met.")
    return 1 if wrong else 0


def _progress(done: str) -> None:
    print(done, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""The solver against all others, in turns in one process: ``python -m benchmarks.linear_sum_assignment``.

Every answer is checked before anything is timed. In each round every solver runs twice and the second run counts, so
that each finds the costs in the cache, as they are where they have just been computed. Times are medians over rounds.
Writes benchmarks/results/linear_sum_assignment.{json,md,svg}.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
import torch

from benchmarks.assignment_costs import FAMILIES, random_targets, training_step
from benchmarks.assignment_peers import OURS, PEERS, Problems, Solver
from detr_fast import _C, ops
from detr_fast.info import package_version

RESULTS = Path(__file__).parent / "results"
STEPS = {100: (6, 16), 300: (4, 16), 900: (7, 8)}  # queries: layers, images
SINGLE = [(100, 7), (100, 20), (100, 63), (100, 100), (300, 20), (300, 100), (300, 300), (900, 63), (900, 300)]
SEEDS = (1, 2, 3)  # of the steps, so that no branch predictor learns one by heart
PACKAGES = ["scipy", "lapx", "lapcpp", "py-lap-solver", "torch-hungarian", "torch", "numpy"]

Times = dict[str, list[float]]


def in_turns(solvers: dict[str, Callable[[], Any]], rounds: int) -> Times:
    """Seconds of each round's second run of each solver."""
    times: Times = {name: [] for name in solvers}
    for _ in range(rounds):
        for name, solve in solvers.items():
            solve()
            start = time.perf_counter()
            solve()
            times[name].append(time.perf_counter() - start)
    return times


def measure_steps(rounds: int) -> dict[str, Any]:
    results = {}
    for family in FAMILIES:
        for queries, (layers, images) in STEPS.items():
            steps = [Problems.of(*training_step(family, layers, images, queries, seed)) for seed in SEEDS]
            prepared = [{name: prepare(step) for name, prepare in {**OURS, **PEERS}.items()} for step in steps]
            for step in prepared:
                _check(step)
            rows: Times = {}
            for step in prepared:
                for name, times in in_turns({name: s.solve for name, s in step.items()}, rounds).items():
                    rows.setdefault(name, []).extend(t / (layers * images) for t in times)
            results[f"{family}, {queries} queries"] = _summary(rows)
    return results


def _check(solvers: dict[str, Solver]) -> None:
    totals = {name: solver.total(solver.solve()) for name, solver in solvers.items()}
    wrong = {name: total for name, total in totals.items() if not np.isclose(total, totals["SciPy loop"], rtol=1e-6)}
    if wrong:
        raise SystemExit(f"SciPy's total is {totals['SciPy loop']}, wrong are {wrong}")


def single_solvers() -> dict[str, Callable[[np.ndarray], Any]]:
    import lap

    return {
        "ours": ops.linear_sum_assignment,
        "SciPy": scipy.optimize.linear_sum_assignment,
        "lapx lapjvh": lambda cost: lap.lapjvh(cost, extend_cost=True, return_cost=False),
        "lapx lapjvs": lambda cost: lap.lapjvs(cost, extend_cost=True, return_cost=False),
        "lapx lapjvxa": lambda cost: lap.lapjvxa(cost, extend_cost=True, return_cost=False).T,
    }


def measure_single(rounds: int) -> dict[str, Any]:
    results = {}
    solvers = single_solvers()
    for family in (*FAMILIES, "ties"):
        for queries, targets in SINGLE:
            costs = _matrices(family, queries, targets)
            for name, solve in solvers.items():
                for cost in costs:
                    _check_single(name, solve(cost), cost)
            calls = {
                name: lambda solve=solve, costs=costs: [solve(cost) for cost in costs]
                for name, solve in solvers.items()
            }
            times = {name: [t / len(costs) for t in ts] for name, ts in in_turns(calls, rounds).items()}
            results[f"{family}, {queries}x{targets}"] = _summary(times)
    return results


def _matrices(family: str, queries: int, targets: int) -> list[np.ndarray]:
    """Several of one shape, float32 [queries, targets]."""
    generator = torch.Generator().manual_seed(0)
    make = FAMILIES["untrained" if family == "ties" else family]
    count = 20 if queries * targets < 10_000 else 4
    costs = [make(1, queries, random_targets([targets], generator), generator)[0].T for _ in range(count)]
    return [(cost.mul(2).round() if family == "ties" else cost).contiguous().numpy() for cost in costs]


def _check_single(name: str, answer: tuple[np.ndarray, np.ndarray], cost: np.ndarray) -> None:
    best = cost[scipy.optimize.linear_sum_assignment(cost)].sum(dtype=np.float64)
    total = cost[answer[0], answer[1]].sum(dtype=np.float64)
    if not np.isclose(total, best, rtol=1e-6):
        raise SystemExit(f"{name} is wrong on a matrix {cost.shape}: {total} instead of {best}")


def _summary(times: Times) -> dict[str, Any]:
    def one(values: list[float]) -> dict[str, float]:
        low, high = np.percentile(values, [5, 95])
        return {"median_us": statistics.median(values) * 1e6, "p5_us": low * 1e6, "p95_us": high * 1e6}

    return {name: one(values) for name, values in times.items()}


def describe_machine(packages: list[str]) -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent).stdout
    cpus = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "cpu": cpus[0] if cpus else platform.processor(),
        "cores": len(cpus),
        "instruction_set": _C.instruction_sets()[0],
        "python": platform.python_version(),
        "versions": {package: package_version(package) for package in packages},
        "commit": commit.strip(),
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def as_table(results: dict[str, Any]) -> str:
    """Each solver's time as a multiple of ours."""
    solvers = [name for name in next(iter(results.values())) if name != "ours"]
    lines = [f"| | ours, us | {' | '.join(solvers)} |", "|---|" + "---|" * (len(solvers) + 1)]
    for name, row in results.items():
        own = row["ours"]["median_us"]
        ratios = " | ".join(f"{row[solver]['median_us'] / own:.3g}" for solver in solvers)
        lines.append(f"| {name} | {own:.3g} | {ratios} |")
    return "\n".join(lines)


def plot(steps: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    peers = [name for name in PEERS if name != "lapx lapjvs, batch"]  # hundreds of times slower: off the scale
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(peers)
    for k, peer in enumerate(peers):
        ratios = [row[peer]["median_us"] / row["ours"]["median_us"] for row in steps.values()]
        axes.bar(np.arange(len(steps)) + (k - (len(peers) - 1) / 2) * width, ratios, width, label=peer)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xticks(range(len(steps)), [name.replace(", ", "\n") for name in steps])
    axes.set_ylabel("time / ours, one thread")
    axes.legend(fontsize=8)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {
        "machine": describe_machine(PACKAGES),
        "steps": measure_steps(options.rounds),
        "single": measure_single(options.rounds),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "linear_sum_assignment.json").write_text(json.dumps(results, indent=1) + "\n")
    tables = (
        "A training step's problems in one call: our time per problem, and the others' as multiples of it\n\n"
        f"{as_table(results['steps'])}\n\nOne call, queries x targets\n\n{as_table(results['single'])}\n"
    )
    (RESULTS / "linear_sum_assignment.md").write_text(tables)
    plot(results["steps"], RESULTS / "linear_sum_assignment.svg")
    print(tables)


if __name__ == "__main__":
    main()

"""Matcher and criterion of other people's detectors, from predictions to gradients, theirs and ours in turns.

``python -m benchmarks.integrations`` runs on one thread, compares the losses before it times anything, and writes
benchmarks/results/integrations.{json,md}: medians of the time, and by how much the process grows at most. RF-DETR is
there in the environment of ``make test-peers``: ``.venv/peers/bin/python -m benchmarks.integrations``.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import re
import statistics
import sys
from itertools import product
from pathlib import Path

import torch

from benchmarks.integration_steps import FAMILIES, Step, steps
from benchmarks.linear_sum_assignment import RESULTS, describe_machine, in_turns
from benchmarks.peers import PeerMissing

QUERIES, IMAGES = (100, 300), (2, 8, 16, 32)


def build_steps(family: str, images: int, queries: int) -> dict[str, Step]:
    """The step as the library computes it and as we do, the losses of both compared."""
    theirs, ours = steps(family, images, queries, torch.device("cpu"))
    torch.testing.assert_close(ours(), theirs(), rtol=1e-5, atol=0)
    return {"theirs": theirs, "ours": ours}


def peak_memory(step: Step) -> int:
    """Bytes by which the process grows at most during a step, whoever allocates them (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or what an earlier step freed would be used again, and not seen
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts over
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024


def measure(family: str, images: int, queries: int, rounds: int) -> dict[str, dict[str, float]]:
    pair = build_steps(family, images, queries)
    times = in_turns(pair, rounds)
    return {
        who: {
            "median_ms": statistics.median(times[who]) * 1e3,
            "peak_mib": statistics.median(peak_memory(step) for _ in range(5)) / 2**20,
        }
        for who, step in pair.items()
    }


def as_table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = ["| | theirs, ms | ours, ms | theirs / ours | peak, theirs, MiB | peak, ours, MiB |", "|---|" + "---|" * 5]
    for name, row in results.items():
        (theirs, their_peak), (ours, own_peak) = (
            (row[who]["median_ms"], row[who]["peak_mib"]) for who in ("theirs", "ours")
        )
        lines.append(
            f"| {name} | {theirs:.3g} | {ours:.3g} | {theirs / ours:.3g} | {their_peak:.3g} | {own_peak:.3g} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for family, queries, images in product(FAMILIES, QUERIES, IMAGES):
        try:
            results[f"{family}, {images} images, {queries} queries"] = measure(family, images, queries, options.rounds)
        except PeerMissing as error:
            print(f"{family}: {error}", file=sys.stderr)
    machine = describe_machine(["transformers", "rfdetr", "torch", "scipy"])
    (RESULTS / "integrations.json").write_text(json.dumps({"machine": machine, "steps": results}, indent=1) + "\n")
    (RESULTS / "integrations.md").write_text(as_table(results))
    print(as_table(results))


if __name__ == "__main__":
    main()

"""The command of a fuzzer that damages files."""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

Run = Callable[[Path, int, int], tuple[Counter[str], list[str]]]


def main(run: Run, description: str | None, *, cases: int, counted: str) -> None:
    """Run a fuzzer with the options of the command line; the exit status is 1 if it found a failure.

    Args:
        run: The fuzzer: from an empty folder, the number of cases and the seed to the number of each outcome, and the
            failures.
        description: What ``--help`` prints.
        cases: The number of cases where the command line has none.
        counted: What the number of cases counts.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--cases", type=int, default=cases, help=counted)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        counts, failures = run(Path(folder), options.cases, options.seed)
    for outcome, count in sorted(counts.items()):
        print(f"{count:6d} {outcome}")
    for failure in failures:
        print(failure)
    print(f"{sum(counts.values())} files, {len(failures)} failures, {time.perf_counter() - start:.0f} s")
    raise SystemExit(bool(failures))

"""Where the problems of a step are solved when they lie on a GPU: there, or by the C++ solver on the host.

On the device every problem has a program of its own, whose steps follow one another; the host is faster at each step,
but takes the problems in turn, and the step waits for it. So many problems, or small ones, stay on the device.
"""

from __future__ import annotations

from typing import NamedTuple

from detr_fast.kernels import LARGEST_PROBLEM

# Targets of the largest image, and from how many problems on the device is faster. Estimated from the host's measured
# times and 0.7 us for a program's step; `python -m benchmarks.gpu_report` measures both sides (rows "crossover").
CROSSOVER = ((64, 1), (128, 2), (256, 4), (1024, 16), (LARGEST_PROBLEM, 64))


class Work(NamedTuple):
    """The problems of a call."""

    problems: int
    most: int  # targets of the largest
    queries: int


def on_device(work: Work | None) -> bool:
    """Whether a GPU's own solver is the faster; None: not known, so not a reason to leave the device."""
    if work is None:
        return True
    if max(work.most, work.queries) > LARGEST_PROBLEM:
        return False
    smaller = min(work.most, work.queries)
    return next(work.problems >= fewest for targets, fewest in CROSSOVER if smaller <= targets)

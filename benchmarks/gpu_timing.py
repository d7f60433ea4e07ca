"""Clocks: times of several functions in turns, on a GPU by its own events and with cold caches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Step = Callable[[], Any]
SECONDS = 0.6  # to spend on one row
ROUNDS = (5, 100)  # the fewest and the most
COPIED = 2**29  # bytes of the copy that others are measured against


@dataclass(frozen=True)
class Times:
    """Microseconds a call."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        p10, median, p90 = (float(value) * 1e6 for value in np.percentile(seconds, [10, 50, 90]))
        return cls(median, p10, p90)


def in_turns(functions: Sequence[Step], device: torch.device) -> list[Times]:
    """Time each function once in every round, after two runs that do not count.

    On a GPU each run starts after something larger than the L2 cache was written, which also lets the host get ahead,
    as it does in training; a function that waits for the device pays for it.
    """
    for function in functions:
        function()
    _wait(device)
    start = time.perf_counter()
    for function in functions:
        function()
    _wait(device)
    rounds = int(np.clip(SECONDS / (time.perf_counter() - start), *ROUNDS))
    time_once = _cuda_clock(device) if device.type == "cuda" else _cpu_clock
    readings = [[time_once(function) for function in functions] for _ in range(rounds)]
    _wait(device)
    return [Times.of([reading() for reading in of_function]) for of_function in zip(*readings, strict=True)]


def _cuda_clock(device: torch.device) -> Callable[[Step], Callable[[], float]]:
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    flushed = torch.empty(2 * cache, dtype=torch.int8, device=device)

    def time_once(function: Step) -> Callable[[], float]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flushed.zero_()
        start.record()
        function()
        end.record()
        return lambda: start.elapsed_time(end) / 1e3

    return time_once


def _cpu_clock(function: Step) -> Callable[[], float]:
    start = time.perf_counter()
    function()
    seconds = time.perf_counter() - start
    return lambda: seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy within the device moves, those read and those written."""
    source = torch.ones(COPIED, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    (times,) = in_turns([lambda: target.copy_(source)], device)
    return 2 * COPIED / (times.median / 1e6)


def peak_memory(function: Step, device: torch.device) -> int:
    """The most bytes that a call allocates at once, its result among them."""
    _wait(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    _wait(device)
    return torch.cuda.max_memory_allocated(device) - before

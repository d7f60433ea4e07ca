"""Times of several implementations, interleaved in one process, on a CPU or a GPU; and peak memory."""

from __future__ import annotations

import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

Call = Callable[[], Any]
Protocol = Literal["cold", "hot"]

SECONDS = 0.3  # to spend on each implementation of a case
ROUNDS = (5, 100)  # the least and the largest number of times that each is timed
FLUSHED = 2**26  # bytes that are written before a cold call on a CPU, at least
CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
COPIED = 2**29  # bytes of the copy whose bandwidth others are compared with


@dataclass(frozen=True)
class Times:
    """Microseconds per call."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, seconds: list[float]) -> Times:
        """Summarize the times of all rounds."""
        p10, median, p90 = (float(value) * 1e6 for value in np.percentile(seconds, [10, 50, 90]))
        return cls(median, p10, p90)


def interleaved(
    calls: Mapping[str, Call], device: torch.device, protocol: Protocol = "cold", seconds: float = SECONDS
) -> dict[str, Times]:
    """Time each call once in every round, after two rounds that do not count.

    Args:
        calls: What is timed, by name.
        device: Where it runs. A GPU is timed by its own events.
        protocol: ``"cold"``: the caches are flushed before each call, so that it finds its inputs as a training step
            leaves them, in memory. On a GPU the flush also lets the host run ahead, as it does in training; a call
            that synchronizes pays for it. ``"hot"``: each call directly follows an untimed one of the same
            implementation.
        seconds: How long to time each call, within the limits of ``ROUNDS``.
    """
    clock = clock_of(device)
    for _ in range(2):
        start = time.perf_counter()
        for call in calls.values():
            _prepare(clock, call, protocol)
            call()
        clock.synchronize()
    rounds = int(np.clip(seconds * len(calls) / (time.perf_counter() - start), *ROUNDS))
    readings: dict[str, list[Callable[[], float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            _prepare(clock, call, protocol)
            readings[name].append(clock.time(call))
    clock.synchronize()
    return {name: Times.of([read() for read in of_call]) for name, of_call in readings.items()}


def clock_of(device: torch.device) -> CpuClock | CudaClock:
    """Return the clock of a device."""
    return CudaClock(device) if device.type == "cuda" else CpuClock()


def _prepare(clock: CpuClock | CudaClock, call: Call, protocol: Protocol) -> None:
    if protocol == "cold":
        clock.flush()
    else:
        call()


class CpuClock:
    """Wall-clock time."""

    def __init__(self) -> None:
        self._buffer = torch.zeros(max(FLUSHED, 2 * largest_cache()), dtype=torch.int8)

    def flush(self) -> None:
        self._buffer.add_(1)

    def synchronize(self) -> None:
        pass

    def time(self, call: Call) -> Callable[[], float]:
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        return lambda: seconds


def largest_cache() -> int:
    """Return the bytes of the CPU's largest cache; 0 where the operating system does not tell."""
    sizes = (path.read_text().strip() for path in CPU_CACHES.glob("index*/size"))
    return max((int(size.removesuffix("K")) * 1024 for size in sizes), default=0)


class CudaClock:
    """Time between two events of the device."""

    def __init__(self, device: torch.device) -> None:
        size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
        self._device, self._buffer = device, torch.empty(size, dtype=torch.int8, device=device)

    def flush(self) -> None:
        self._buffer.zero_()

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)

    def time(self, call: Call) -> Callable[[], float]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        return lambda: start.elapsed_time(end) / 1e3


@cache
def copy_bandwidth(device: torch.device) -> float:
    """Measure how many bytes per second a copy within the device's memory reads and writes."""
    source = torch.ones(COPIED, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    times = interleaved({"copy": lambda: target.copy_(source)}, device)["copy"]
    return 2 * COPIED / (times.median / 1e6)


def peak_memory(call: Call, device: torch.device) -> int:
    """Measure how many bytes a call allocates at once, including its result.

    On a CPU it is the growth of the process, by any allocator: the median of three calls. This needs Linux.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return int(statistics.median(_growth(call) for _ in range(3)))


def _growth(call: Call) -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # otherwise memory that an earlier call freed is reused, which hides it
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024

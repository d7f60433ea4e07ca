"""Every implementation of every case under pytest-benchmark, after the check of what it returns."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

import pytest
import torch

from benchmarks.clock import clock_of
from benchmarks.registry import Case, Unavailable, find_cases

ROUNDS = 20  # of a cold case, in which each call follows a flush
DEVICES = [torch.device(name) for name in ("cpu", "cuda") if name == "cpu" or torch.cuda.is_available()]
CASES = [(device, name, case) for device in DEVICES for name, case in find_cases(device)]
PARAMETERS = [
    pytest.param(number, implementation, id=f"{name}-{device.type}-{case.sizes}-{case.protocol}-{implementation}")
    for number, (device, name, case) in enumerate(CASES)
    for implementation in case.implementations
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def _inputs_and_expected(number: int) -> tuple[Any, Any]:
    case: Case = CASES[number][2]
    inputs = case.inputs()
    return inputs, case.expected(inputs)


_clock_of = cache(clock_of)


@pytest.mark.parametrize(("number", "implementation"), PARAMETERS)
def test_case(benchmark, number, implementation):
    device, name, case = CASES[number]
    try:
        call = case.prepare(implementation, *_inputs_and_expected(number)).call
    except Unavailable as reason:
        pytest.skip(str(reason))
    clock = _clock_of(device)

    def synchronized() -> None:
        call()
        clock.synchronize()

    benchmark.group = f"{name}, {device.type}, {case.sizes}, {case.protocol}"
    if case.protocol == "cold":
        benchmark.pedantic(synchronized, setup=clock.flush, rounds=ROUNDS)
    else:
        benchmark(synchronized)

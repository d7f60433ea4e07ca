from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from tests.ops.inputs import Case, CompileCase, Rng, corners, integer
from tests.ops.inputs.pairwise_box_iou import SHAPES, ties


def conformance_cases() -> Iterator[Case]:
    yield Case("ties", lambda dtype, rng: (ties(dtype), ties(dtype)))
    for name, shape in SHAPES.items():
        yield Case(name, lambda dtype, rng, shape=shape: _arguments(dtype, rng, *shape))
    for number in range(3):
        yield Case(f"random {number}", lambda dtype, rng: _arguments(dtype, rng, 2, integer(rng, 1, 40), 33))


def _arguments(dtype: torch.dtype, rng: Rng, batch: int, num1: int, num2: int) -> tuple[Any, ...]:
    return corners(rng, batch, num1, dtype=dtype), corners(rng, batch, num2, dtype=dtype)


def compile_cases() -> Iterator[CompileCase]:
    registers = {"pairwise_fwd_kernel": 64, "pairwise_bwd_kernel": 96}
    yield CompileCase("l1", (torch.zeros(2, 300, 4), torch.zeros(2, 63, 4)), registers)

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tests.ops.inputs import Case, CompileCase, Rng, integer

OPTIONS: dict[str, tuple[int, float, float, str]] = {
    "yxwh": (128, 10000.0, 2 * math.pi, "yxwh"),
    "xywh": (128, 10000.0, 2 * math.pi, "xywh"),
    "short wavelengths": (128, 20.0, 1.0, "yxwh"),
    "temperature below 1": (128, 0.5, 2 * math.pi, "yxwh"),
    "frequency after the last overflows": (10, 1e-30, 1e-24, "yxwh"),
    "negative scale": (128, 10000.0, -100.0, "yxwh"),
    "two features": (2, 10000.0, 2 * math.pi, "yxwh"),
    "many features": (264, 10000.0, 2 * math.pi, "xywh"),
}


def conformance_cases() -> Iterator[Case]:
    for name, options in OPTIONS.items():
        yield Case(name, lambda dtype, rng, options=options: (coordinates(dtype, rng, 2, 9, 4), *options))
    for count in (1, 2, 3):
        yield Case(
            f"{count} coordinates",
            lambda dtype, rng, count=count: (coordinates(dtype, rng, 9, count), *OPTIONS["yxwh"]),
        )
    for shape in ((0, 4), (2, 0, 2), (4,)):
        yield Case(
            f"shape {shape}", lambda dtype, rng, shape=shape: (coordinates(dtype, rng, *shape), *OPTIONS["yxwh"])
        )
    yield Case(
        "strided", lambda dtype, rng: (coordinates(dtype, rng, 3, 4, 8)[..., ::2].transpose(0, 1), *OPTIONS["yxwh"])
    )
    for number in range(3):
        yield Case(f"random {number}", _random)


def coordinates(dtype: torch.dtype, rng: Rng, *shape: int) -> Tensor:
    """Random coordinates, some outside of the image."""
    return (torch.rand(*shape, dtype=torch.float64, generator=rng) * 1.4 - 0.2).to(dtype)


def _random(dtype: torch.dtype, rng: Rng) -> tuple[Any, ...]:
    num_feats = 2 * integer(rng, 1, 70)
    return coordinates(dtype, rng, integer(rng, 1, 60), integer(rng, 1, 4)), num_feats, *OPTIONS["yxwh"][1:]


def compile_cases() -> Iterator[CompileCase]:
    for count, num_feats, dtype, forward, backward in (
        (4, 128, torch.float32, 80, 80),
        (2, 256, torch.bfloat16, 80, 104),
    ):
        registers = {
            "sine_coordinate_embedding_fwd_kernel": forward,
            "sine_coordinate_embedding_bwd_kernel": backward,
        }
        arguments = torch.zeros(300, count, dtype=dtype), num_feats, *OPTIONS["yxwh"][1:]
        yield CompileCase(f"{count} coordinates {dtype}", arguments, registers)

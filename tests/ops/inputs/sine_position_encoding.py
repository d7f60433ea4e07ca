from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from tests.ops.inputs import Case, CompileCase, Rng, integer

DEFAULTS = {
    "num_feats": 20,
    "temperature": 10000.0,
    "normalize": True,
    "scale": 2 * math.pi,
    "eps": 1e-6,
    "offset": 0.0,
    "dtype": None,
    "layout": "bchw",
    "interleave": True,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "detr": {},
    "not normalized": {"normalize": False, "offset": -1.0},
    "deformable": {"offset": -0.5},
    "short wavelengths": {"temperature": 20.0, "scale": 1.0},
    "long axis": {"scale": 1000.0, "eps": 1e-2},
    "two features": {"num_feats": 2},
    "many features": {"num_feats": 264},
    "sines first": {"interleave": False},
}
SHAPES = {"one": (1, 1, 1), "tall": (1, 40, 3), "wide": (2, 2, 67), "row": (1, 1, 130), "no cell": (2, 0, 3)}


def conformance_cases() -> Iterator[Case]:
    for layout in ("bchw", "blc"):
        for name, options in OPTIONS.items():
            used = {"layout": layout, **options}
            yield Case(f"{name}, {layout}", lambda dtype, rng, used=used: _arguments(dtype, rng, (2, 3, 21), used))
        for name, shape in SHAPES.items():
            used = {"layout": layout, "num_feats": 4}
            yield Case(
                f"{name}, {layout}", lambda dtype, rng, shape=shape, used=used: _arguments(dtype, rng, shape, used)
            )
    yield Case("strided", _strided)
    yield Case("all padding", lambda dtype, rng: _padded(dtype, rng))
    for number in range(3):
        yield Case(f"random {number}", _random)


def _arguments(dtype: torch.dtype, rng: Rng, shape: tuple[int, ...], options: dict[str, Any]) -> tuple[Any, ...]:
    mask = torch.rand(*shape, generator=rng) > 0.7
    if mask.numel():
        mask[:, 0, 0] = False
    return mask, *{**DEFAULTS, **options, "dtype": dtype}.values()


def _strided(dtype: torch.dtype, rng: Rng) -> tuple[Any, ...]:
    mask, *options = _arguments(dtype, rng, (5, 7, 2), {"num_feats": 4})
    return mask.permute(2, 1, 0), *options


def _padded(dtype: torch.dtype, rng: Rng) -> tuple[Any, ...]:
    mask, *options = _arguments(dtype, rng, (2, 4, 5), {"num_feats": 4})
    mask[0] = True
    return mask, *options


def _random(dtype: torch.dtype, rng: Rng) -> tuple[Any, ...]:
    options = list(OPTIONS.values())[integer(rng, 0, len(OPTIONS) - 1)]
    return _arguments(dtype, rng, (integer(rng, 1, 3), integer(rng, 1, 40), integer(rng, 1, 90)), options)


def compile_cases() -> Iterator[CompileCase]:
    mask = torch.zeros(2, 25, 34, dtype=torch.bool)
    for name, options, registers in (
        ("bchw fp32", {"dtype": torch.float32}, 80),
        ("blc fp32", {"dtype": torch.float32, "layout": "blc"}, 48),
        ("blc bf16 sines first", {"dtype": torch.bfloat16, "layout": "blc", "interleave": False}, 64),
    ):
        used = {**DEFAULTS, "num_feats": 128, **options}
        yield CompileCase(name, (mask, *used.values()), {"sine_position_encoding_kernel": registers})

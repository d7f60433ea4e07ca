from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from detr_fast.ops.deformable_sampling import SpatialShapes
from tests.ops.inputs import Case, CompileCase, Rng, integer

Levels = Sequence[tuple[int, int]]

LEVELS: Levels = [(5, 7), (3, 4), (1, 1), (2, 1)]
ENCODER: Levels = [(100, 134), (50, 67), (25, 34), (13, 17)]  # of an image of 800x1066
DECODER: Levels = [(80, 80), (40, 40), (20, 20)]  # of an image of 640x640
SIZES: dict[str, tuple[int, int, int, int]] = {  # images, queries, heads, channels of a head
    "one": (1, 1, 1, 1),
    "no query": (2, 0, 2, 8),
    "no image": (0, 3, 2, 8),
    "no channel": (1, 3, 2, 0),
    "blocks": (2, 13, 3, 16),
    "many heads": (1, 3, 17, 8),
    "width 3": (1, 9, 2, 3),
    "width 24": (1, 5, 2, 24),
    "width 64": (1, 3, 2, 64),
    "wide": (1, 3, 2, 130),
}


def conformance_cases() -> Iterator[Case]:
    for name, sizes in SIZES.items():
        yield Case(name, lambda dtype, rng, sizes=sizes: arguments(dtype, rng, LEVELS, sizes, [2, 1, 2, 1]))
    for name, points in {"points differ": [3, 0, 1, 2], "no point": [0, 0, 0, 0], "many points": [5, 7, 4, 5]}.items():
        yield Case(name, lambda dtype, rng, points=points: arguments(dtype, rng, LEVELS, (2, 3, 2, 8), points))
    for name, levels in {"one cell": [(1, 1)], "no cell": [(0, 0)], "empty level": [(0, 3), (2, 2), (3, 0)]}.items():
        yield Case(
            name, lambda dtype, rng, levels=levels: arguments(dtype, rng, levels, (2, 3, 2, 8), [2] * len(levels))
        )
    nine = [(2, 2)] * 9
    yield Case("nine levels", lambda dtype, rng: arguments(dtype, rng, nine, (1, 3, 2, 8), [1] * 9))
    yield Case("shapes in a tensor", lambda dtype, rng: _with_tensor(dtype, rng))
    yield Case("discrete", lambda dtype, rng: _discrete(dtype, rng))
    yield Case("deterministic", lambda dtype, rng: _deterministic(dtype, rng))
    yield Case("not finite", lambda dtype, rng: _not_finite(dtype, rng))
    yield Case("strided", lambda dtype, rng: _strided(dtype, rng))
    for number in range(3):
        yield Case(f"random {number}", _random)


def values(dtype: torch.dtype, rng: Rng, levels: Levels, sizes: tuple[int, int, int, int]) -> Tensor:
    """Random values [B,S,H,D]."""
    images, _, heads, width = sizes
    num_values = sum(height * width for height, width in levels)
    return (torch.rand(images, num_values, heads, width, generator=rng, dtype=torch.float64) * 2 - 1).to(dtype)


def shapes(levels: Levels) -> SpatialShapes:
    return SpatialShapes([size for level in levels for size in level], None)


def arguments(
    dtype: torch.dtype,
    rng: Rng,
    levels: Levels,
    sizes: tuple[int, int, int, int],
    points: list[int],
    method: str = "default",
    deterministic: bool = False,
) -> tuple[Any, ...]:
    """Random arguments; a third of the locations lie outside of their level.

    Locations keep a distance from the centers of cells, where the gradient is a choice and rounding decides.
    """
    images, queries, heads, _ = sizes
    lead, num_points = (images, queries, heads), sum(points)
    size = torch.tensor([(width, height) for height, width in levels]).repeat_interleave(torch.tensor(points), 0)
    location = torch.rand(*lead, num_points, 2, generator=rng, dtype=torch.float64) * 1.5 - 0.25
    cell = location * size - 0.5
    cell = cell.floor() + 0.1 + 0.8 * (cell - cell.floor())
    location = (cell + 0.5) / size.clamp(min=1)
    weight = -torch.rand(*lead, num_points, generator=rng, dtype=torch.float64).clamp(min=1e-3).log() / 4
    options = shapes(levels), points, method, deterministic
    return values(dtype, rng, levels, sizes), location.to(dtype), weight.to(dtype), *options


def _with_tensor(dtype: torch.dtype, rng: Rng) -> tuple[Any, ...]:
    value, location, weight, _, *options = arguments(dtype, rng, LEVELS, (2, 3, 2, 8), [2, 1, 2, 1])
    return value, location, weight, SpatialShapes([], torch.tensor(LEVELS)), *options


def _discrete(dtype: torch.dtype, rng: Rng) -> tuple[Any, ...]:
    return arguments(dtype, rng, LEVELS, (2, 3, 2, 8), [2, 1, 2, 1], method="discrete")


def _deterministic(dtype: torch.dtype, rng: Rng) -> tuple[Any, ...]:
    is_double = dtype == torch.float64  # which Triton does not compute reproducibly
    return arguments(dtype, rng, LEVELS, (2, 9, 2, 8), [2, 1, 2, 1], deterministic=not is_double)


def _not_finite(dtype: torch.dtype, rng: Rng) -> tuple[Any, ...]:
    value, location, *rest = arguments(dtype, rng, LEVELS, (2, 3, 2, 8), [2, 1, 2, 1])
    location[0, 1, 1, 0, 0] = float("nan")
    location[1, 0, 0, 2, 1] = float("inf")
    location[1, 2, 0, 3, 0] = -1e30 if dtype != torch.float16 else -6e4
    return value, location, *rest


def _strided(dtype: torch.dtype, rng: Rng) -> tuple[Any, ...]:
    value, location, weight, *options = arguments(dtype, rng, LEVELS, (2, 3, 2, 8), [2, 1, 2, 1])
    value = value.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return value, location.transpose(1, 3).contiguous().transpose(1, 3), weight[:1].expand(2, -1, -1, -1), *options


def _random(dtype: torch.dtype, rng: Rng) -> tuple[Any, ...]:
    levels = [(integer(rng, 0, 6), integer(rng, 1, 6)) for _ in range(integer(rng, 1, 4))]
    sizes = integer(rng, 1, 2), integer(rng, 1, 20), integer(rng, 1, 4), integer(rng, 1, 40)
    return arguments(dtype, rng, levels, sizes, [integer(rng, 0, 4) for _ in levels])


def compile_cases() -> Iterator[CompileCase]:
    for name, width, dtype, deterministic, forward, backward in (
        ("encoder", 32, torch.float32, False, 80, 64),
        ("encoder, bfloat16", 32, torch.bfloat16, False, 48, 64),
        ("encoder, deterministic", 32, torch.float32, True, 80, 128),
        ("narrow", 8, torch.float32, False, 64, 72),
        ("wide", 128, torch.float32, False, 80, 64),
    ):
        value = torch.zeros(2, sum(h * w for h, w in ENCODER), 8, width, dtype=dtype)
        locations, weights = torch.zeros(2, 300, 8, 16, 2, dtype=dtype), torch.zeros(2, 300, 8, 16, dtype=dtype)
        registers = {
            "deformable_attention_fwd_kernel": forward,
            "deformable_attention_bwd_kernel": backward,
            "fixed_point_to_float_kernel": 32,
        }
        options = shapes(ENCODER), [4, 4, 4, 4], "default", deterministic
        yield CompileCase(name, (value, locations, weights, *options), registers)

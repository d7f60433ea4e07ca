from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from detr_fast.ops.deformable_sampling import SpatialShapes
from tests.ops.inputs import Case, CompileCase, Rng, integer
from tests.ops.inputs.multi_scale_deformable_attention import DECODER, ENCODER, LEVELS, SIZES, Levels, shapes, values


def conformance_cases() -> Iterator[Case]:
    for coordinates in (2, 4):
        for shared in (False, True):
            name = f"{coordinates} coordinates" + (", shared" if shared else "")
            yield Case(
                name,
                lambda dtype, rng, coordinates=coordinates, shared=shared: arguments(
                    dtype, rng, LEVELS, (2, 5, 2, 8), [2, 1, 3, 1], coordinates, shared
                ),
            )
    for name, sizes in SIZES.items():
        yield Case(name, lambda dtype, rng, sizes=sizes: arguments(dtype, rng, LEVELS, sizes, [2, 1, 2, 1], 4, False))
    for name, points in {"points differ": [3, 0, 1, 2], "no point": [0, 0, 0, 0], "many points": [5, 7, 4, 5]}.items():
        yield Case(name, lambda dtype, rng, points=points: arguments(dtype, rng, LEVELS, (2, 3, 2, 8), points, 4, True))
    yield Case("offset scale", lambda dtype, rng: _with(dtype, rng, offset_scale=0.3))
    yield Case("shapes in a tensor", lambda dtype, rng: _with(dtype, rng, tensor=True))
    yield Case("deterministic", lambda dtype, rng: _with(dtype, rng, deterministic=dtype != torch.float64))
    yield Case("not finite", lambda dtype, rng: _not_finite(dtype, rng))
    yield Case("large logits", lambda dtype, rng: _large_logits(dtype, rng))
    for number in range(3):
        yield Case(f"random {number}", _random)


def arguments(
    dtype: torch.dtype,
    rng: Rng,
    levels: Levels,
    sizes: tuple[int, int, int, int],
    points: list[int],
    coordinates: int,
    shared: bool,
    offset_scale: float = 0.5,
    deterministic: bool = False,
) -> tuple[Any, ...]:
    """Random arguments. Locations keep a distance from the centers of cells, where rounding decides the gradient."""
    images, queries, heads, _ = sizes
    lead = images, queries, heads, sum(points)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=rng, dtype=torch.float64)

    point = rand(images, queries, 1 if shared else len(levels), coordinates) * 1.2 - 0.1
    if coordinates == 4:
        point[..., 2:] = point[..., 2:].abs() * 0.4 + 0.2
    point = point.to(dtype)
    size = torch.tensor([(width, height) for height, width in levels], dtype=torch.float64)
    counts = torch.tensor(points)
    at = point.double().expand(-1, -1, len(levels), -1).repeat_interleave(counts, 2)[:, :, None]  # [B,Q,1,N,C]
    size, of_level = size.repeat_interleave(counts, 0), counts.repeat_interleave(counts)[:, None]
    cell = at[..., :2] * size - 0.5 + (rand(*lead, 2) * 4 - 2)
    cell = cell.floor() + 0.1 + 0.8 * (cell - cell.floor())
    offset = cell + 0.5 - at[..., :2] * size
    if coordinates == 4:
        offset = offset / size.clamp(min=1) * of_level / (at[..., 2:] * offset_scale)
    logits = rand(*lead) * 6 - 3
    options = shapes(levels), points, offset_scale, "default", deterministic
    return values(dtype, rng, levels, sizes), point, offset.to(dtype), logits.to(dtype), *options


def _with(dtype: torch.dtype, rng: Rng, tensor: bool = False, **options: Any) -> tuple[Any, ...]:
    made = list(arguments(dtype, rng, LEVELS, (2, 5, 2, 8), [2, 1, 2, 1], 4, False, **options))
    if tensor:
        made[4] = SpatialShapes([], torch.tensor(LEVELS))
    return tuple(made)


def _not_finite(dtype: torch.dtype, rng: Rng) -> tuple[Any, ...]:
    made = _with(dtype, rng)
    made[1][0, 2, 1, 3] = float("inf")
    made[2][0, 1, 1, 0, 0] = float("nan")
    made[2][1, 0, 0, 2, 1] = -float("inf")
    return made


def _large_logits(dtype: torch.dtype, rng: Rng) -> tuple[Any, ...]:
    made = _with(dtype, rng)
    made[3][0] *= 100
    made[3][1] -= 1e4
    return made


def _random(dtype: torch.dtype, rng: Rng) -> tuple[Any, ...]:
    levels = [(integer(rng, 1, 6), integer(rng, 1, 6)) for _ in range(integer(rng, 1, 4))]
    sizes = integer(rng, 1, 2), integer(rng, 1, 20), integer(rng, 1, 4), integer(rng, 1, 40)
    points = [integer(rng, 0, 4) for _ in levels]
    return arguments(dtype, rng, levels, sizes, points, 2 * integer(rng, 1, 2), bool(integer(rng, 0, 1)))


def compile_cases() -> Iterator[CompileCase]:
    for name, levels, points, coordinates, dtype, deterministic, forward, backward in (
        ("encoder", ENCODER, [4, 4, 4, 4], 2, torch.float32, False, 120, 112),
        ("decoder", DECODER, [4, 4, 4], 4, torch.float32, False, 120, 128),
        ("decoder, bfloat16", DECODER, [3, 6, 3], 4, torch.bfloat16, False, 80, 128),
        ("encoder, deterministic", ENCODER, [4, 4, 4, 4], 2, torch.float32, True, 120, 168),
    ):
        value = torch.zeros(2, sum(h * w for h, w in levels), 8, 32, dtype=dtype)
        point = torch.zeros(2, 300, 1 if coordinates == 4 else len(levels), coordinates, dtype=dtype)
        lead = 2, 300, 8, sum(points)
        registers = {
            "deformable_attention_fwd_kernel": forward,
            "deformable_attention_bwd_kernel": backward,
            "fixed_point_to_float_kernel": 32,
        }
        offsets, logits = torch.zeros(*lead, 2, dtype=dtype), torch.zeros(*lead, dtype=dtype)
        options = shapes(levels), points, 0.5, "default", deterministic
        yield CompileCase(name, (value, point, offsets, logits, *options), registers)

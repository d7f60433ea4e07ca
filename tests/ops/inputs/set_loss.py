from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from detr_fast import LossWeights, Targets
from tests.ops.inputs import Case, CompileCase, Rng, integer, predictions, targets

WEIGHTS = {
    "detr": LossWeights.detr(),
    "mmdet2": LossWeights.mmdet2(),
    "mmdet3": LossWeights.mmdet3(),
    "deformable": LossWeights.deformable(),
    "rt_detr": LossWeights.rt_detr(),
    "lw_detr": LossWeights.lw_detr(),
    "focal, other numbers": LossWeights(class_loss="focal", focal_gamma=1.5, focal_alpha=0.6),
    "gamma 0": LossWeights(class_loss="focal", focal_gamma=0.0),
    "ia_bce, other numbers": LossWeights(
        class_loss="ia_bce", focal_alpha=0.6, focal_gamma=1.5, giou_eps=1e-3, box_scale=0.5
    ),
    "softmax, other numbers": LossWeights(no_object=0.3, giou_eps=1e-3, box_scale=0.5),
}
# Layers, targets of each image, queries of a group, logits, groups.
SHAPES = {
    "one": (1, [1], 1, 2, 1),
    "no target": (2, [0, 0], 3, 4, 1),
    "no image": (1, [], 3, 4, 1),
    "no layer": (0, [0, 0], 3, 4, 1),
    "more targets than queries": (2, [3, 0, 9, 40], 7, 5, 1),
    "groups": (1, [2, 5], 13, 92, 3),
    "many classes": (1, [2, 5], 13, 366, 1),
    "many targets and queries": (1, [130], 257, 33, 1),
}


def conformance_cases() -> Iterator[Case]:
    for name, weights in WEIGHTS.items():
        yield Case(name, lambda dtype, rng, weights=weights: _arguments(dtype, rng, 2, [3, 0, 9], 7, 5, 1, weights))
        yield Case(
            f"logits far from 0, {name}",
            lambda dtype, rng, weights=weights: _arguments(dtype, rng, 1, [3], 6, 5, 1, weights, spread=60.0),
        )
    for name, shape in SHAPES.items():
        for kind in ("detr", "deformable"):
            yield Case(
                f"{name}, {kind}",
                lambda dtype, rng, shape=shape, kind=kind: _arguments(dtype, rng, *shape, WEIGHTS[kind]),
            )
    for kind in ("deformable", "rt_detr", "lw_detr"):
        yield Case(f"small losses, {kind}", lambda dtype, rng, kind=kind: _small(dtype, rng, WEIGHTS[kind]))
    for kind in ("detr", "mmdet2", "lw_detr"):
        yield Case(f"degenerate boxes, {kind}", lambda dtype, rng, kind=kind: _degenerate(dtype, rng, WEIGHTS[kind]))
    yield Case("divisors on the device", _tensor_divisors)
    for number in range(4):
        yield Case(f"random {number}", _random)


def random_index(rng: Rng, layers: int, groups: int, sizes: list[int], queries: int) -> Tensor:
    """A random match of each image's targets in each group: int64 [L,G,T], -1 where queries do not suffice."""
    index = torch.full((layers, groups, sum(sizes)), -1)
    for layer in range(layers):
        for group in range(groups):
            start = 0
            for size in sizes:
                chosen = torch.randperm(queries, generator=rng)[:size]
                rows = start + torch.randperm(size, generator=rng)[: len(chosen)]
                index[layer, group, rows] = chosen + group * queries
                start += size
    return index


def _arguments(
    dtype: torch.dtype,
    rng: Rng,
    layers: int,
    sizes: list[int],
    queries: int,
    num_logits: int,
    groups: int,
    weights: LossWeights,
    spread: float = 3.0,
) -> tuple[Any, ...]:
    predicted = predictions(rng, layers, len(sizes), groups * queries, num_logits, dtype, spread)
    index = random_index(rng, layers, groups, sizes, queries)
    return *predicted, targets(rng, sizes, num_logits - 1), index, weights, float(max(1, sum(sizes))), 7.5


def _small(dtype: torch.dtype, rng: Rng, weights: LossWeights) -> tuple[Any, ...]:
    """Scores near 0 and no match, so that the class loss is small in every term, without focusing."""
    arguments = list(_arguments(dtype, rng, 1, [3], 6, 5, 1, replace(weights, focal_gamma=0.0)))
    arguments[0] = -arguments[0].abs() - 10
    arguments[3] = torch.full_like(arguments[3], -1)
    return tuple(arguments)


def _degenerate(dtype: torch.dtype, rng: Rng, weights: LossWeights) -> tuple[Any, ...]:
    """Points, lines, equal boxes and shared edges, where a gradient is a choice, each with each."""
    rows = torch.tensor(
        [
            [0.5, 0.5, 0.0, 0.0],
            [0.5, 0.5, 0.25, 0.0],
            [0.5, 0.5, 0.25, 0.5],
            [0.75, 0.5, 0.25, 0.5],
            [0.5, 0.5, 0.125, 0.25],
            [0.125, 0.125, 0.0, 0.0],
        ]
    )
    pairs = torch.cartesian_prod(torch.arange(6), torch.arange(6))
    truth = Targets.from_list([{"labels": torch.zeros(36, dtype=torch.int64), "boxes": rows[pairs[:, 0]]}])
    index = torch.randperm(36, generator=rng)
    predicted = rows[pairs[:, 1]][index.argsort()].to(dtype)
    return torch.zeros(1, 1, 36, 2, dtype=dtype), predicted[None, None], truth, index[None, None], weights, 36.0, 36.0


def _tensor_divisors(dtype: torch.dtype, rng: Rng) -> tuple[Any, ...]:
    *arguments, _, _ = _arguments(dtype, rng, 2, [3, 0, 9], 7, 5, 1, WEIGHTS["detr"])
    return *arguments, torch.tensor(8), torch.tensor(4.6)


def _random(dtype: torch.dtype, rng: Rng) -> tuple[Any, ...]:
    sizes = [integer(rng, 0, 12) for _ in range(integer(rng, 1, 4))]
    weights = list(WEIGHTS.values())[integer(rng, 0, len(WEIGHTS) - 1)]
    shape = integer(rng, 1, 3), sizes, integer(rng, 1, 40), integer(rng, 2, 40), integer(rng, 1, 2)
    return _arguments(dtype, rng, *shape, weights)


def compile_cases() -> Iterator[CompileCase]:
    focal = LossWeights(class_loss="focal", focal_gamma=1.5)
    for name, num_logits, dtype, weights, forward, backward in (
        ("mmdet2", 5, torch.bfloat16, WEIGHTS["mmdet2"], 72, 72),
        ("detr", 92, torch.float32, WEIGHTS["detr"], 128, 144),
        ("deformable", 91, torch.float32, WEIGHTS["deformable"], 96, 144),
        ("rt_detr", 91, torch.float32, WEIGHTS["rt_detr"], 112, 144),
        ("lw_detr", 91, torch.bfloat16, WEIGHTS["lw_detr"], 160, 144),
        ("gamma 1.5", 366, torch.float32, focal, 144, 112),
    ):
        registers = {"set_loss_fwd_kernel": forward, "set_loss_bwd_kernel": backward, "set_loss_reduce_kernel": 144}
        *arguments, _, _ = _arguments(dtype, torch.Generator(), 6, [7, 20], 300, num_logits, 1, weights)
        divisors = torch.tensor(27.0), torch.tensor(57.0)
        yield CompileCase(f"{name}, {num_logits} logits, {dtype}", (*arguments, *divisors), registers)
    for layers in (6, 13):
        arguments = _arguments(torch.float32, torch.Generator(), layers, [7, 20], 300, 92, 1, WEIGHTS["detr"])
        registers = {"set_loss_fwd_kernel": 128, "set_loss_bwd_kernel": 144, "set_loss_reduce_kernel": 144}
        yield CompileCase(f"{layers} layers, divisors of the host", arguments, registers)

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tests.ops.inputs import Case, CompileCase, Rng, boxes, corners, integer

OPTIONS = {
    "iou": ("iou", "xyxy", 0.0),
    "iou, cxcywh": ("iou", "cxcywh", 0.0),
    "iou, eps": ("iou", "xyxy", 0.2),
    "giou": ("giou", "xyxy", 0.0),
    "giou, cxcywh, eps": ("giou", "cxcywh", 1e-6),
    "giou, eps": ("giou", "xyxy", 0.2),
    "iof": ("iof", "xyxy", 0.0),
    "iof, cxcywh, eps": ("iof", "cxcywh", 1e-6),
    "iof, eps": ("iof", "xyxy", 0.2),
}
SHAPES = {"one": (1, 1, 1), "no box": (2, 0, 3), "no other box": (2, 3, 0), "no batch": (0, 3, 2), "blocks": (2, 9, 70)}


def conformance_cases() -> Iterator[Case]:
    for name, options in OPTIONS.items():
        yield Case(name, lambda dtype, rng, options=options: _arguments(dtype, rng, 1, 9, 70, *options))
        yield Case(f"ties, {name}", lambda dtype, rng, options=options: (ties(dtype), ties(dtype), *options))
    for name, shape in SHAPES.items():
        yield Case(name, lambda dtype, rng, shape=shape: _arguments(dtype, rng, *shape, *OPTIONS["giou"]))
    yield Case("batches shared", lambda dtype, rng: _shared(dtype, rng))
    for number in range(3):
        yield Case(f"random {number}", _random)


def ties(dtype: torch.dtype) -> Tensor:
    """Identical, touching, nested and empty boxes, where a gradient is a choice: [1,6,4]."""
    rows = [[0, 0, 1, 1], [0, 0, 1, 1], [1, 0, 2, 1], [0, 0, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5], [0.25, 0.25, 0.75, 0.25]]
    return torch.tensor([rows], dtype=dtype)


def _arguments(
    dtype: torch.dtype, rng: Rng, batch: int, num1: int, num2: int, kind: str, box_format: str, eps: float
) -> tuple[Any, ...]:
    make = corners if box_format == "xyxy" else boxes
    return make(rng, batch, num1, dtype=dtype), make(rng, batch, num2, dtype=dtype), kind, box_format, eps


def _shared(dtype: torch.dtype, rng: Rng) -> tuple[Any, ...]:
    first, second, *options = _arguments(dtype, rng, 1, 3, 5, *OPTIONS["giou"])
    return first.expand(4, -1, -1), second.expand(4, -1, -1), *options


def _random(dtype: torch.dtype, rng: Rng) -> tuple[Any, ...]:
    options = list(OPTIONS.values())[integer(rng, 0, len(OPTIONS) - 1)]
    return _arguments(dtype, rng, integer(rng, 1, 3), integer(rng, 1, 40), integer(rng, 1, 90), *options)


def compile_cases() -> Iterator[CompileCase]:
    boxes1, boxes2 = torch.zeros(2, 300, 4), torch.zeros(2, 63, 4)
    for name, forward, backward in (("iou", 80, 128), ("giou, cxcywh, eps", 96, 168), ("iof", 80, 168)):
        registers = {"pairwise_fwd_kernel": forward, "pairwise_bwd_kernel": backward}
        yield CompileCase(name, (boxes1, boxes2, *OPTIONS[name]), registers)

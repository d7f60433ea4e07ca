"""Inputs of the ops for the conformance suite, a module for each op.

A module has ``conformance_cases()``, which yields :class:`Case`. Their arguments are those of the op's reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detr_fast import Targets

Rng = torch.Generator


class Case(NamedTuple):
    """Inputs of one call."""

    name: str
    make: Callable[[torch.dtype, Rng], tuple[Any, ...]]  # from the dtype of the tensors to the op's arguments
    gradients: bool = True  # whether gradients are compared as well, where the op has any


def boxes(rng: Rng, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random cxcywh [...,4] inside of the image."""
    center, size = torch.rand(2, *shape, 2, generator=rng, dtype=torch.float64)
    return torch.cat((0.25 + 0.5 * center, 0.01 + 0.45 * size), -1).to(dtype)


def corners(rng: Rng, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random xyxy [...,4]."""
    low, size = torch.rand(2, *shape, 2, generator=rng, dtype=torch.float64)
    return torch.cat((low, low + 0.01 + size), -1).to(dtype)


def targets(rng: Rng, sizes: list[int], num_classes: int) -> Targets:
    """Random targets, ``sizes`` of them in the images."""
    return Targets.from_list(
        [{"labels": torch.randint(num_classes, (n,), generator=rng), "boxes": boxes(rng, n).float()} for n in sizes]
    )


def predictions(
    rng: Rng, layers: int, images: int, queries: int, num_logits: int, dtype: torch.dtype, spread: float = 3.0
) -> tuple[Tensor, Tensor]:
    """Random logits [L,B,Q,C] and boxes [L,B,Q,4], images outermost in memory so that the layers are strided."""
    lead = (images, layers, queries)
    logits = torch.randn(*lead, num_logits, generator=rng, dtype=torch.float64) * spread
    return logits.to(dtype).transpose(0, 1), boxes(rng, *lead, dtype=dtype).transpose(0, 1)


def integer(rng: Rng, low: int, high: int) -> int:
    """A random integer in [low, high]."""
    return int(torch.randint(low, high + 1, (), generator=rng))


class CompileCase(NamedTuple):
    """A call whose kernels are compiled for GPUs, at shapes that matter there."""

    name: str
    arguments: tuple[Any, ...]  # of the op; their values do not count
    registers: dict[str, int]  # the most that a thread of each kernel may take

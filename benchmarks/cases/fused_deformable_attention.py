"""Fused deformable attention and its gradients, against the host library's softmax, locations and ``grid_sample``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.cases.multi_scale_deformable_attention import (
    NUM_HEADS,
    SHAPES,
    WIDTH,
    Shape,
    attention_case,
    cell_centers,
    host_library,
    off_centers,
)
from benchmarks.registry import Case

SIZES = [("encoder", 1), ("decoder", 1), ("rt_detr", 1), ("rt_detr", 8), ("d_fine", 1)]
SMALL = [("small", 2)]

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # value, points, offsets, logits and the gradient


def case(device: torch.device, shape: str, images: int) -> Case:
    # The absolute error is that of the gradient of points, which adds up those of all heads and locations.
    return attention_case(
        "fused_deformable_attention", device, SHAPES[shape], images, random_inputs, host_attention, atol=2e-2
    )


def random_inputs(layer: Shape, images: int, device: torch.device) -> Inputs:
    """Draw values, the points of cells or the boxes of queries, offsets of a few cells and logits."""
    generator = torch.Generator().manual_seed(0)
    num_values = sum(height * width for height, width in layer.levels)
    num_queries, num_points = layer.queries or num_values, sum(layer.points)
    value = torch.randn(images, num_values, NUM_HEADS, WIDTH, generator=generator)
    if layer.queries is None:
        points = cell_centers(layer.levels)[None, :, None].expand(images, -1, len(layer.levels), -1).contiguous()
    else:
        center = torch.rand(images, num_queries, 1, 2, generator=generator)
        points = torch.cat((center, 0.02 + 0.3 * torch.rand(center.shape, generator=generator)), -1)
    offsets = torch.randn(images, num_queries, NUM_HEADS, num_points, 2, generator=generator) * 3
    center, unit = offset_units(points, layer)
    offsets = (off_centers(center + offsets * unit, layer) - center) / unit
    logits = torch.randn(*offsets.shape[:-1], generator=generator)
    grad = torch.randn(images, num_queries, NUM_HEADS * WIDTH, generator=generator)
    return value.to(device), points.to(device), offsets.to(device), logits.to(device), grad.to(device)


def host_attention(layer: Shape) -> Any:
    """Return what the attention layers of transformers' models compute between their projections."""
    attend = host_library(layer)

    def attention(value: Tensor, points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        center, unit = offset_units(points, layer)
        return attend(value, center + offsets * unit, logits.softmax(-1))

    return attention


def offset_units(points: Tensor, layer: Shape) -> tuple[Tensor, Tensor]:
    """Return the center of each point [B,Q,1,N,2], and what an offset is multiplied by."""
    counts = torch.tensor(layer.points, device=points.device)
    points = points.expand(-1, -1, len(layer.levels), -1).repeat_interleave(counts, 2)[:, :, None]
    if points.shape[-1] == 4:
        return points[..., :2], points[..., 2:] * (0.5 / counts.repeat_interleave(counts)[:, None])
    sizes = torch.tensor([(width, height) for height, width in layer.levels], device=points.device)
    return points, 1 / sizes.repeat_interleave(counts, 0)

"""Multi-scale deformable attention and its gradients, against the host library's ``grid_sample``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.peers import import_peer
from benchmarks.registry import Case, Goal, Implementation, backends, default_backend, with_gradients
from detr_fast import ops

NUM_HEADS, WIDTH = 8, 32
Levels = list[tuple[int, int]]


class Shape(NamedTuple):
    """An attention layer of a model."""

    name: str
    levels: Levels
    points: list[int]  # of each level
    queries: int | None  # None: as many as values, the queries of an encoder
    faster: float  # than transformers, on a CPU


DEFORMABLE = [(100, 134), (50, 67), (25, 34), (13, 17)]  # of an image of 800x1066
RT_DETR = [(80, 80), (40, 40), (20, 20)]  # of an image of 640x640
SHAPES = {
    "encoder": Shape("encoder of Deformable DETR, 800x1066", DEFORMABLE, [4] * 4, None, 12),
    "decoder": Shape("decoder of Deformable DETR, 800x1066", DEFORMABLE, [4] * 4, 300, 6),
    "rt_detr": Shape("decoder of RT-DETR, 640x640", RT_DETR, [4] * 3, 300, 6),
    "d_fine": Shape("decoder of D-FINE, 640x640", RT_DETR, [3, 6, 3], 300, 6),
    "small": Shape("small", [(5, 7), (3, 4)], [2, 1], 9, 0),
}
SIZES = [("encoder", 1), ("decoder", 1), ("rt_detr", 1), ("rt_detr", 8), ("d_fine", 1)]
SMALL = [("small", 2)]

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]  # value, locations [B,Q,H,N,2], weights [B,Q,H,N] and the gradient


def case(device: torch.device, shape: str, images: int) -> Case:
    # The absolute error is that of the gradient of locations, which is multiplied by the size of a level.
    return attention_case(
        "multi_scale_deformable_attention", device, SHAPES[shape], images, random_inputs, host_library, atol=1e-2
    )


def attention_case(
    op: str,
    device: torch.device,
    layer: Shape,
    images: int,
    draw: Callable[[Shape, int, torch.device], tuple[Tensor, ...]],
    host: Callable[[Shape], Any],
    *,
    atol: float,
) -> Case:
    """Build the case of an op that attends, against the host library.

    Args:
        op: Name of the op.
        device: The device.
        layer: The layer.
        images: Number of images.
        draw: Draws the values, the other arguments and the gradient of the output.
        host: From the layer to the host library's function of the same arguments.
        atol: Absolute tolerance of the results.
    """

    def compute(inputs: tuple[Tensor, ...], backend: str) -> tuple[Tensor, ...]:
        attend = partial(getattr(ops, op), points_per_level=layer.points, backend=backend)
        return evaluate(lambda value, *others: attend(value, layer.levels, *others), inputs)

    def transformers(inputs: tuple[Tensor, ...]) -> Implementation:
        return Implementation(partial(evaluate, host(layer), inputs))

    default = default_backend(op, device)
    has_goal = device.type == "cpu" and layer.faster > 0
    # The reference keeps all that it gathers, which is gigabytes and takes seconds for an encoder.
    slow, exact = ([], "reference") if layer.queries is not None else (["reference"], default)
    return Case(
        f"{layer.name}, {images} images, with gradients",
        default,
        lambda: draw(layer, images, device),
        {**backends(op, device, compute, exclude=slow), "transformers": transformers},
        lambda inputs: compute(tuple(tensor.double() for tensor in inputs), exact),
        rtol=1e-3,
        atol=atol,
        goals=(Goal("ratio", layer.faster, "transformers"),) if has_goal else (),
        has_memory=True,
    )


def random_inputs(layer: Shape, images: int, device: torch.device) -> Inputs:
    """Draw values, and locations a few cells around the queries' points or boxes."""
    generator = torch.Generator().manual_seed(0)
    num_values = sum(height * width for height, width in layer.levels)
    num_queries, num_points = layer.queries or num_values, sum(layer.points)
    value = torch.randn(images, num_values, NUM_HEADS, WIDTH, generator=generator)
    offset = torch.randn(images, num_queries, NUM_HEADS, num_points, 2, generator=generator)
    if layer.queries is None:
        sizes = torch.tensor([(width, height) for height, width in layer.levels])
        points = cell_centers(layer.levels)[None, :, None, None]
        offset *= 3 / sizes.repeat_interleave(torch.tensor(layer.points), 0)
    else:
        points = torch.rand(images, num_queries, 1, 1, 2, generator=generator)
        offset *= 0.2 * torch.rand(images, num_queries, 1, 1, 1, generator=generator)
    locations = off_centers(points + offset, layer)
    weights = torch.randn(*offset.shape[:-1], generator=generator).softmax(-1)
    grad = torch.randn(images, num_queries, NUM_HEADS * WIDTH, generator=generator)
    return value.to(device), locations.to(device), weights.to(device), grad.to(device)


def off_centers(locations: Tensor, layer: Shape) -> Tensor:
    """Move locations [...,N,2] away from the centers of cells, where rounding decides the gradient."""
    sizes = torch.tensor([(width, height) for height, width in layer.levels])
    sizes = sizes.repeat_interleave(torch.tensor(layer.points), 0)
    cells = locations * sizes - 0.5
    return (cells.floor() + (cells - cells.floor()).clamp(0.01, 0.99) + 0.5) / sizes


def cell_centers(levels: Levels) -> Tensor:
    """Return x and y of the cells of all levels in fractions of their level, [S,2]."""
    axes = [((torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height) for height, width in levels]
    return torch.cat([torch.stack(torch.meshgrid(*level, indexing="xy"), -1).flatten(0, 1) for level in axes])


def host_library(layer: Shape) -> Any:
    """Return the function of transformers' model, from value, locations and weights."""
    if len(set(layer.points)) > 1:
        module = import_peer("transformers", "transformers.models.rt_detr_v2.modeling_rt_detr_v2")
        function = module.multi_scale_deformable_attention_v2
        return lambda value, *others: function(value, layer.levels, *others, layer.points)
    module = import_peer("transformers", "transformers.models.deformable_detr.modeling_deformable_detr")
    attention = module.MultiScaleDeformableAttention()
    split = len(layer.levels), layer.points[0]

    def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        shapes = torch.tensor(layer.levels)
        locations, weights = locations.unflatten(3, split), weights.unflatten(3, split)
        return attention(value, shapes, layer.levels, None, locations, weights, 64)

    return attend


def evaluate(attend: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the output and the gradients."""
    *leaves, grad = inputs
    return with_gradients(lambda *tensors: (attend(*tensors),), leaves, grad)

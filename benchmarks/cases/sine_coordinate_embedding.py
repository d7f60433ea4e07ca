"""The sine embedding of points and boxes, and its gradient."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.registry import Case, backends, default_backend, with_gradients
from detr_fast import ops

NUM_FEATS = 128
SIZES = [(2, 300, 2), (16, 300, 4), (16, 900, 4)]
SMALL = [(2, 3, 4)]

Inputs = tuple[Tensor, Tensor]  # the coordinates and the gradient of the embedding


def case(device: torch.device, images: int, queries: int, numbers: int) -> Case:
    def inputs() -> Inputs:
        generator = torch.Generator().manual_seed(0)
        coordinates = torch.rand(images, queries, numbers, generator=generator)
        grad = torch.randn(images, queries, numbers * NUM_FEATS, generator=generator)
        return coordinates.to(device), grad.to(device)

    def compute(inputs: Inputs, backend: str) -> tuple[Tensor, ...]:
        coordinates, grad = inputs
        embed = partial(ops.sine_coordinate_embedding, num_feats=NUM_FEATS, backend=backend)
        return with_gradients(lambda leaf: (embed(leaf),), [coordinates], grad)

    return Case(
        f"coordinates {images}x{queries}x{numbers}, {NUM_FEATS} features each, with gradient",
        default_backend("sine_coordinate_embedding", device),
        inputs,
        backends("sine_coordinate_embedding", device, compute),
        lambda inputs: compute(tuple(tensor.double() for tensor in inputs), "reference"),
        atol=1e-3,  # of the gradient, which sums the wavelengths
    )

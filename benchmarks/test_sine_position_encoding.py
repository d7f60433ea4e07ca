from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.conftest import backends, synchronized
from detr_fast import ops


@pytest.mark.parametrize("size", [(2, 25, 34), (16, 32, 32), (8, 50, 67)], ids=str)
@pytest.mark.parametrize(("device", "backend"), backends("sine_position_encoding"))
def test_sine_position_encoding(benchmark, device, backend, size):
    benchmark.group = f"sine_position_encoding, {device}, mask {size}, 256 channels"
    batch, height, width = size
    mask = torch.zeros(size, dtype=torch.bool)
    mask[: batch // 2, height * 3 // 4 :] = True
    mask[batch // 2 :, :, width * 3 // 4 :] = True
    exact = ops.sine_position_encoding(mask, dtype=torch.float64, backend="reference")
    mask = mask.to(device)
    result = ops.sine_position_encoding(mask, backend=backend)
    torch.testing.assert_close(result.cpu().double(), exact, rtol=0, atol=1e-5)
    benchmark(synchronized(lambda: ops.sine_position_encoding(mask, backend=backend), device))


@pytest.mark.parametrize("shape", [(2, 300, 2), (16, 300, 4), (16, 900, 4)], ids=str)
@pytest.mark.parametrize(("device", "backend"), backends("sine_position_encoding"))
def test_sine_coordinate_embedding(benchmark, device, backend, shape):
    benchmark.group = f"sine_coordinate_embedding, {device}, coordinates {shape}, 128 features each, with gradient"
    grad = torch.randn(*shape[:-1], shape[-1] * 128)

    def forward_and_backward(coordinates: Tensor, grad: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        embedding = ops.sine_coordinate_embedding(coordinates, backend=backend)
        return embedding.detach(), *torch.autograd.grad(embedding, coordinates, grad)

    coordinates = torch.rand(shape)
    exact = forward_and_backward(coordinates.double().requires_grad_(), grad.double(), "reference")
    coordinates, grad = coordinates.to(device).requires_grad_(), grad.to(device)
    results = forward_and_backward(coordinates, grad, backend)
    for result, expected, tolerance in zip(results, exact, (1e-5, 1e-3), strict=True):
        torch.testing.assert_close(result.cpu().double(), expected, rtol=0, atol=tolerance)
    benchmark(synchronized(lambda: forward_and_backward(coordinates, grad, backend), device))

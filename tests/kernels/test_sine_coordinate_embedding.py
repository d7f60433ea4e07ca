from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from detr_fast import ops
from tests.ops.conformance import assert_as_exact

pytest.importorskip("triton")


def _coordinates(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2


def _forward_and_backward(coordinates: Tensor, backend: str, **options) -> tuple[Tensor, Tensor]:
    coordinates = coordinates.detach().requires_grad_()
    embedding = ops.sine_coordinate_embedding(coordinates, backend=backend, **options)
    weight = torch.linspace(-1, 1, embedding.numel(), dtype=embedding.dtype, device=embedding.device)
    return embedding.detach(), *torch.autograd.grad(embedding, coordinates, weight.view(embedding.shape))


def _assert_coordinates_as_exact(coordinates: Tensor, **options) -> None:
    results, plain, exact = (
        _forward_and_backward(coordinates.to(dtype), backend, **options)
        for dtype, backend in (
            (coordinates.dtype, "triton"),
            (coordinates.dtype, "reference"),
            (torch.float64, "reference"),
        )
    )
    for each in zip(results, plain, exact, strict=True):
        assert_as_exact(*each)


@pytest.mark.parametrize("scale", [1.0, 2 * math.pi])
@pytest.mark.parametrize("num_feats", [2, 128])
@pytest.mark.parametrize("largest", [1333, 24999, 25001, 1e6, 1e9])
def test_coordinates_in_pixels_and_far_outside(scale, num_feats, largest, device):
    """With scale 1 whole numbers are exact angles, whose sines plain PyTorch has to the last digit, however large."""
    coordinates = torch.linspace(-largest, largest, 41, device=device).round().view(-1, 1)
    _assert_coordinates_as_exact(coordinates, num_feats=num_feats, scale=scale)


def test_frequencies_above_one_are_not_small_angles(device):
    coordinates = torch.arange(1.0, 40.0, device=device)[:, None]
    _assert_coordinates_as_exact(coordinates, num_feats=4, temperature=2.0**-30, scale=1.0)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's inf - inf
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_coordinate_that_is_not_finite_spoils_its_own_features_only(value, device):
    coordinates = _coordinates(7, 4).to(device, torch.float32)
    coordinates[2, 1] = value
    coordinates[5, 3] = 1e6
    _assert_coordinates_as_exact(coordinates, num_feats=4)
    embedding, grad = _forward_and_backward(coordinates, "triton", num_feats=4)
    assert embedding[2, :4].isnan().all()
    assert embedding.isnan().sum() == 4
    assert grad.isnan().nonzero().tolist() == [[2, 1]]


@pytest.mark.parametrize(
    "view",
    [
        lambda boxes: boxes[..., :2],
        lambda boxes: boxes[..., 1::2],
        lambda boxes: boxes.transpose(0, 1),
        lambda boxes: boxes.transpose(1, 2),
        lambda boxes: boxes[:, :1].expand(-1, 4, -1),
        lambda boxes: boxes[1, 2],
        lambda boxes: boxes.flip(0)[::2],
    ],
)
def test_coordinates_of_any_strides(view, device):
    boxes = _coordinates(3, 4, 4).to(device)
    results = _forward_and_backward(view(boxes), "triton", num_feats=6)
    for result, expected in zip(results, _forward_and_backward(view(boxes), "reference", num_feats=6), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "grad_of",
    [
        lambda embedding: embedding.sum(),
        lambda embedding: (embedding.transpose(0, 2) * torch.arange(3.0, device=embedding.device)).sum(),
        lambda embedding: embedding[..., ::2].square().sum(),
    ],
)
def test_gradients_of_any_strides(grad_of, device):
    gradients = []
    for backend in ("triton", "reference"):
        boxes = _coordinates(3, 5, 4).to(device).requires_grad_()
        grad_of(ops.sine_coordinate_embedding(boxes, 6, backend=backend)).backward()
        gradients.append(boxes.grad)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_gradients_of_coordinates_are_the_numerical_ones(device):
    coordinates = _coordinates(2, 3, 4).to(device).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.sine_coordinate_embedding(x, 6, backend="triton"), coordinates)

from __future__ import annotations

import math
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from detr_fast import ops

NO_TEMPERATURES = [0.0, -1.0, math.inf, math.nan]


def _value_and_gradient(function, coordinates: Tensor) -> tuple[Tensor, Tensor]:
    coordinates = coordinates.detach().requires_grad_()
    embedding = function(coordinates)
    weight = torch.linspace(-1, 1, embedding.numel(), dtype=embedding.dtype).view(embedding.shape)
    return embedding, *torch.autograd.grad((embedding * weight).sum(), coordinates)


def _assert_same(actual, desired, coordinates: Tensor, tolerance: float) -> None:
    results = _value_and_gradient(actual, coordinates)
    for result, expected in zip(results, _value_and_gradient(desired, coordinates), strict=True):
        torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "family", ["conditional_detr", "dab_detr", "grounding_dino", "mm_grounding_dino", "lw_detr", "rf_detr"]
)
@pytest.mark.parametrize("num_coordinates", [1, 2, 4])
def test_coordinates_as_transformers_embeds_them(family, num_coordinates):
    pytest.importorskip("transformers")
    modeling = import_module(f"transformers.models.{family}.modeling_{family}")
    coordinates = torch.rand(3, 5, num_coordinates)
    desired = modeling.encode_sinusoidal_position_embedding
    _assert_same(ops.sine_coordinate_embedding, desired, coordinates, 1e-5)
    # In float64 they still have the wavelengths of float32; powers of two are exact there.
    _assert_same(
        lambda x: ops.sine_coordinate_embedding(x, 8, temperature=16.0),
        lambda x: desired(x, 8, temperature=16),
        coordinates.double(),
        1e-12,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_boxes_as_sam3_embeds_them(dtype, tolerance):
    pytest.importorskip("transformers")
    from transformers.models.sam3.modeling_sam3 import Sam3SinePositionEmbedding

    module = Sam3SinePositionEmbedding(num_position_features=64, temperature=20, normalize=True, scale=3.0)
    _assert_same(
        lambda x: ops.sine_coordinate_embedding(x, 64, temperature=20.0, scale=3.0),
        module.encode_boxes,
        torch.rand(2, 7, 4, dtype=dtype),
        tolerance,
    )


def test_proposals_as_deformable_detr_embeds_them():
    pytest.importorskip("transformers")
    from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrModel

    model = SimpleNamespace(config=SimpleNamespace(d_model=64))
    _assert_same(
        lambda x: ops.sine_coordinate_embedding(x.sigmoid(), 32, order="xywh"),
        lambda x: DeformableDetrModel.get_proposal_pos_embed(model, x),
        torch.randn(2, 7, 4),
        1e-5,
    )


@pytest.mark.parametrize(("order", "places"), [("yxwh", [1, 0, 2, 3]), ("xywh", [0, 1, 2, 3])])
@pytest.mark.parametrize("num_coordinates", [1, 2, 3, 4])
def test_coordinates_by_hand(order, places, num_coordinates):
    coordinates = [0.25, -3.0, 1000.0, 0.0][:num_coordinates]
    embedding = ops.sine_coordinate_embedding(
        torch.tensor(coordinates, dtype=torch.float64), 4, temperature=100.0, scale=0.5, order=order
    )
    angles = [coordinates[p] * 0.5 for p in (places if num_coordinates > 1 else [0]) if p < num_coordinates]
    expected = [f(angle / wavelength) for angle in angles for wavelength in (1, 10) for f in (math.sin, math.cos)]
    torch.testing.assert_close(embedding, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_gradients_of_coordinates_are_the_numerical_ones():
    coordinates = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.sine_coordinate_embedding(x, 6), coordinates)
    assert torch.autograd.gradgradcheck(lambda x: ops.sine_coordinate_embedding(x, 6), coordinates)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_coordinates_of_low_precision_are_embedded_in_float32(dtype):
    coordinates = torch.rand(5, 4).to(dtype)
    embedding = ops.sine_coordinate_embedding(coordinates)
    assert torch.equal(embedding, ops.sine_coordinate_embedding(coordinates.float()).to(dtype))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coordinates": torch.tensor(1.0)}, "floating point \\[...,D\\]"),
        ({"coordinates": torch.zeros(3, 0)}, "floating point \\[...,D\\]"),
        ({"coordinates": torch.zeros(3, 2, dtype=torch.int64)}, "floating point \\[...,D\\]"),
        ({"num_feats": 7}, "even"),
        ({"num_feats": 0}, "even"),
        ({"order": "xyhw"}, "order"),
        *(({"temperature": value}, "finite and above 0") for value in NO_TEMPERATURES),
    ],
)
def test_bad_arguments_with_coordinates(arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.sine_coordinate_embedding(**{"coordinates": torch.zeros(1, 2), **arguments})


@pytest.mark.parametrize("name", ["temperature", "scale"])
def test_what_is_no_number_is_named(name):
    with pytest.raises(TypeError, match=f"{name} must be a number, got 'x'"):
        ops.sine_coordinate_embedding(torch.zeros(3, 2), 4, **{name: "x"})

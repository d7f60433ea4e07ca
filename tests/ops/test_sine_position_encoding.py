from __future__ import annotations

import math
import re
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from detr_fast import ops

NAME = re.compile(
    r"(?P<source>official|hf_deformable)_(?P<precision>f32|f64)/(?P<mask>\w+)/N(?P<n>\d+)/norm(?P<norm>\d)"
    r"(/T(?P<t>\d+)/scale(?P<scale>\d+))?"
)
NO_TEMPERATURES = [0.0, -1.0, math.inf, math.nan]


def _arguments(found: re.Match[str]) -> dict[str, object]:
    arguments: dict[str, object] = {"num_feats": int(found["n"]), "normalize": found["norm"] == "1"}
    if found["t"]:
        arguments |= {"temperature": float(found["t"]), "scale": float(found["scale"])}
    if found["source"] == "hf_deformable":
        arguments["offset"] = -0.5
    return arguments


def test_golden_encodings(golden):
    arrays = golden("posenc")
    checked = 0
    for name, expected in arrays.items():
        found = NAME.fullmatch(name)
        if not found:
            continue
        mask = torch.from_numpy(arrays[f"mask/{found['mask']}"])
        valid = ~mask[:, None].expand(expected.shape).numpy()
        if found["source"] == "official":
            valid = np.ones_like(valid)  # Deformable's padded cells mean nothing
        exact = arrays.get(name.replace("_f32/", "_f64/"))
        dtype = torch.float64 if found["precision"] == "f64" else torch.float32
        encoding = ops.sine_position_encoding(mask, dtype=dtype, **_arguments(found)).numpy()
        assert encoding.shape == expected.shape
        if exact is None:
            np.testing.assert_allclose(encoding[valid], expected[valid], rtol=0, atol=2e-6, err_msg=name)
        elif dtype == torch.float64:
            np.testing.assert_allclose(encoding[valid], exact[valid], rtol=0, atol=1e-12, err_msg=name)
        else:
            own_error = np.abs(encoding - exact)[valid].max()
            their_error = np.abs(expected - exact)[valid].max()
            assert own_error <= max(2e-6, 2 * their_error), name
        checked += 1
    assert checked > 50


@pytest.mark.parametrize(("width", "height", "dim"), [(20, 15, 256), (7, 9, 64)])
def test_golden_rt_detr(golden, width, height, dim):
    expected = golden("posenc")[f"hf_rtdetr_f32/w{width}h{height}d{dim}"]
    encoding = ops.sine_position_encoding(
        torch.zeros(1, height, width, dtype=torch.bool),
        dim // 2,
        normalize=False,
        offset=-1.0,
        layout="blc",
        interleave=False,
    )
    np.testing.assert_allclose(encoding.numpy(), expected, rtol=0, atol=2e-6)


def test_layouts_hold_the_same_numbers():
    mask = torch.rand(2, 5, 7) > 0.7
    bchw = ops.sine_position_encoding(mask, 8)
    blc = ops.sine_position_encoding(mask, 8, layout="blc")
    assert bchw.is_contiguous()
    torch.testing.assert_close(blc, bchw.flatten(2).transpose(1, 2), rtol=0, atol=0)


def test_low_precision_is_computed_in_float32():
    mask = torch.zeros(1, 40, 40, dtype=torch.bool)
    exact = ops.sine_position_encoding(mask)
    assert torch.equal(ops.sine_position_encoding(mask, dtype=torch.bfloat16), exact.bfloat16())
    assert torch.equal(ops.sine_position_encoding(mask, dtype=torch.float16), exact.half())


def test_one_row_by_hand():
    mask = torch.tensor([[[False, False, True]]])
    encoding = ops.sine_position_encoding(mask, 2, scale=1.0)[0, :, 0]  # y: 1 of 1, 0 of 0; x: 1 of 2, 2 of 2
    expected = [
        [math.sin(1), math.sin(1), 0],
        [math.cos(1), math.cos(1), 1],
        [math.sin(0.5), math.sin(1), math.sin(1)],
        [math.cos(0.5), math.cos(1), math.cos(1)],
    ]
    torch.testing.assert_close(encoding, torch.tensor(expected), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": torch.zeros(2, 2, dtype=torch.bool)}, "bool \\[B,H,W\\]"),
        ({"mask": torch.zeros(1, 2, 2)}, "bool \\[B,H,W\\]"),
        ({"num_feats": 7}, "even"),
        ({"layout": "bhwc"}, "layout"),
        *(({"temperature": value}, "finite and above 0") for value in NO_TEMPERATURES),
    ],
)
def test_bad_arguments(arguments, message):
    arguments = {"mask": torch.zeros(1, 2, 2, dtype=torch.bool), **arguments}
    with pytest.raises(ValueError, match=message):
        ops.sine_position_encoding(**arguments)


def _value_and_gradient(function, coordinates: Tensor) -> tuple[Tensor, Tensor]:
    coordinates = coordinates.detach().requires_grad_()
    embedding = function(coordinates)
    weight = torch.linspace(-1, 1, embedding.numel(), dtype=embedding.dtype).view(embedding.shape)
    return embedding, *torch.autograd.grad((embedding * weight).sum(), coordinates)


def _assert_same(ours, theirs, coordinates: Tensor, tolerance: float) -> None:
    results = _value_and_gradient(ours, coordinates)
    for result, expected in zip(results, _value_and_gradient(theirs, coordinates), strict=True):
        torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "family", ["conditional_detr", "dab_detr", "grounding_dino", "mm_grounding_dino", "lw_detr", "rf_detr"]
)
@pytest.mark.parametrize("num_coordinates", [1, 2, 4])
def test_coordinates_as_transformers_embeds_them(family, num_coordinates):
    pytest.importorskip("transformers")
    modeling = import_module(f"transformers.models.{family}.modeling_{family}")
    coordinates = torch.rand(3, 5, num_coordinates)
    theirs = modeling.encode_sinusoidal_position_embedding
    _assert_same(ops.sine_coordinate_embedding, theirs, coordinates, 1e-5)
    # In float64 they still have the wavelengths of float32; powers of two are exact there.
    _assert_same(
        lambda x: ops.sine_coordinate_embedding(x, 8, temperature=16.0),
        lambda x: theirs(x, 8, temperature=16),
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

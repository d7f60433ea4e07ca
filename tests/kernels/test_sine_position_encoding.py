from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from detr_fast import ops

pytest.importorskip("triton")


def _mask(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) > 0.7


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["bchw", "blc"])
@pytest.mark.parametrize("interleave", [True, False])
def test_dtypes_and_layouts(assert_as_exact, dtype, layout, interleave, device):
    mask = _mask(2, 3, 21).to(device)
    options = {"num_feats": 20, "layout": layout, "interleave": interleave}
    assert_as_exact(
        ops.sine_position_encoding(mask, dtype=dtype, backend="triton", **options),
        ops.sine_position_encoding(mask, dtype=dtype, backend="reference", **options),
        ops.sine_position_encoding(mask, dtype=torch.float64, backend="reference", **options),
    )


@pytest.mark.parametrize(
    "options",
    [
        {"normalize": False, "offset": -1.0},
        {"offset": -0.5},
        {"temperature": 20.0, "scale": 1.0},
        {"scale": 1000.0, "eps": 1e-2},
        {"num_feats": 2},
        {"num_feats": 264},
    ],
)
@pytest.mark.parametrize("layout", ["bchw", "blc"])
def test_options(assert_as_exact, options, layout, device):
    mask = _mask(1, 4, 9).to(device)
    mask[:, 0, 0] = False
    options = {"num_feats": 64, "layout": layout, **options}
    exact = ops.sine_position_encoding(mask, dtype=torch.float64, backend="reference", **options)
    plain = ops.sine_position_encoding(mask, backend="reference", **options)
    assert_as_exact(ops.sine_position_encoding(mask, backend="triton", **options), plain, exact)
    double = ops.sine_position_encoding(mask, dtype=torch.float64, backend="triton", **options)
    torch.testing.assert_close(double, exact, rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 3), (2, 2, 67), (1, 1, 130)])
@pytest.mark.parametrize("layout", ["bchw", "blc"])
def test_maps_larger_than_a_block(assert_as_exact, shape, layout, device):
    mask = _mask(*shape).to(device)
    encode = ops.sine_position_encoding
    assert_as_exact(
        encode(mask, 4, layout=layout, backend="triton"),
        encode(mask, 4, layout=layout, backend="reference"),
        encode(mask, 4, layout=layout, dtype=torch.float64, backend="reference"),
    )


@pytest.mark.parametrize("mask_name", ["odd7x13", "one1x1", "allpad5x6", "holes9x11"])
@pytest.mark.parametrize(("source", "offset"), [("official", 0.0), ("hf_deformable", -0.5)])
def test_golden_encodings(golden, assert_as_exact, mask_name, source, offset, device):
    arrays = golden("posenc")
    mask = torch.from_numpy(arrays[f"mask/{mask_name}"]).to(device)
    checked = 0
    for normalize in (True, False):
        names = [f"{source}_{precision}/{mask_name}/N128/norm{int(normalize)}" for precision in ("f32", "f64")]
        if not all(name in arrays for name in names):
            continue
        plain, exact = (torch.from_numpy(arrays[name]).to(device) for name in names)
        encoding = ops.sine_position_encoding(mask, 128, normalize=normalize, offset=offset, backend="triton")
        valid = torch.ones_like(mask) if source == "official" else ~mask  # Deformable's padded cells mean nothing
        valid = valid[:, None].expand(encoding.shape)
        assert_as_exact(encoding[valid], plain[valid], exact[valid])
        checked += 1
    assert checked


def test_no_cells(device):
    assert ops.sine_position_encoding(
        torch.zeros(2, 0, 3, dtype=torch.bool, device=device), backend="triton"
    ).shape == (2, 256, 0, 3)


def test_a_mask_of_any_strides(device):
    mask = _mask(5, 7, 2).permute(2, 1, 0).to(device)
    expected = ops.sine_position_encoding(mask.contiguous(), 4, backend="triton")
    assert torch.equal(ops.sine_position_encoding(mask, 4, backend="triton"), expected)


def _coordinates(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2


def _forward_and_backward(coordinates: Tensor, backend: str, **options) -> tuple[Tensor, Tensor]:
    coordinates = coordinates.detach().requires_grad_()
    embedding = ops.sine_coordinate_embedding(coordinates, backend=backend, **options)
    weight = torch.linspace(-1, 1, embedding.numel(), dtype=embedding.dtype, device=embedding.device)
    return embedding.detach(), *torch.autograd.grad(embedding, coordinates, weight.view(embedding.shape))


def _assert_coordinates_as_exact(assert_as_exact, coordinates: Tensor, **options) -> None:
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_coordinates", [1, 2, 3, 4])
@pytest.mark.parametrize("order", ["yxwh", "xywh"])
def test_coordinates(assert_as_exact, dtype, num_coordinates, order, device):
    coordinates = _coordinates(2, 9, num_coordinates).to(device, dtype)
    _assert_coordinates_as_exact(assert_as_exact, coordinates, order=order)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 20.0, "scale": 1.0},
        {"temperature": 0.5},
        {"temperature": 1e-30, "scale": 1e-24, "num_feats": 10},  # the frequency after the last overflows float32
        {"scale": -100.0},
        {"num_feats": 2},
        {"num_feats": 6},
        {"num_feats": 264},
    ],
    ids=str,
)
def test_options_of_coordinates(assert_as_exact, options, device):
    _assert_coordinates_as_exact(assert_as_exact, _coordinates(35, 2).to(device, torch.float32), **options)


@pytest.mark.parametrize("scale", [1.0, 2 * math.pi])
@pytest.mark.parametrize("num_feats", [2, 128])
@pytest.mark.parametrize("largest", [1333, 24999, 25001, 1e6, 1e9])
def test_coordinates_in_pixels_and_far_outside(assert_as_exact, scale, num_feats, largest, device):
    """With scale 1 whole numbers are exact angles, whose sines plain PyTorch has to the last digit, however large."""
    coordinates = torch.linspace(-largest, largest, 41, device=device).round().view(-1, 1)
    _assert_coordinates_as_exact(assert_as_exact, coordinates, num_feats=num_feats, scale=scale)


def test_frequencies_above_one_are_not_small_angles(assert_as_exact, device):
    coordinates = torch.arange(1.0, 40.0, device=device)[:, None]
    _assert_coordinates_as_exact(assert_as_exact, coordinates, num_feats=4, temperature=2.0**-30, scale=1.0)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's inf - inf
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_coordinate_that_is_not_finite_spoils_its_own_features_only(assert_as_exact, value, device):
    coordinates = _coordinates(7, 4).to(device, torch.float32)
    coordinates[2, 1] = value
    coordinates[5, 3] = 1e6
    _assert_coordinates_as_exact(assert_as_exact, coordinates, num_feats=4)
    embedding, grad = _forward_and_backward(coordinates, "triton", num_feats=4)
    assert embedding[2, :4].isnan().all()
    assert embedding.isnan().sum() == 4
    assert grad.isnan().nonzero().tolist() == [[2, 1]]


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 2)])
def test_no_coordinates(shape, device):
    embedding, grad = _forward_and_backward(torch.zeros(shape, device=device), "triton")
    assert embedding.shape == (*shape[:-1], shape[-1] * 128)
    assert grad.shape == shape


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


def test_gradients_of_coordinates_are_the_numerical_ones(device):
    coordinates = _coordinates(2, 3, 4).to(device).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.sine_coordinate_embedding(x, 6, backend="triton"), coordinates)

from __future__ import annotations

import pytest
import torch

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

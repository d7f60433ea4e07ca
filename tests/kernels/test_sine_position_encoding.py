from __future__ import annotations

import pytest
import torch

from detr_fast import ops
from tests.ops.conformance import assert_as_exact

pytest.importorskip("triton")


def _mask(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) > 0.7


@pytest.mark.parametrize("mask_name", ["odd7x13", "one1x1", "allpad5x6", "holes9x11"])
@pytest.mark.parametrize(("source", "offset"), [("official", 0.0), ("hf_deformable", -0.5)])
def test_golden_encodings(golden, mask_name, source, offset, device):
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


def test_a_mask_of_any_strides(device):
    mask = _mask(5, 7, 2).permute(2, 1, 0).to(device)
    expected = ops.sine_position_encoding(mask.contiguous(), 4, backend="triton")
    assert torch.equal(ops.sine_position_encoding(mask, 4, backend="triton"), expected)

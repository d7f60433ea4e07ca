from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize("name", ["temperature", "scale", "eps", "offset"])
@pytest.mark.parametrize("value", ["x", None, True, torch.ones(2)])
def test_what_is_no_number_is_named(name, value):
    mask = torch.zeros(1, 2, 2, dtype=torch.bool)
    with pytest.raises(TypeError, match=f"{name} must be a number, got {re.escape(repr(value))}"):
        ops.sine_position_encoding(mask, 4, **{name: value})

"""The outputs of facebookresearch/detr, and of the DETR head of MMDetection 2.11, for tiny models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from detr_fast import DETR
from detr_fast.checkpoints.formats import to_original
from detr_fast.models import load_weights, postprocess
from detr_fast.models.position_encoding import LearnedPositionEncoding, SinePositionEncoding

# float64: nothing but the order of additions differs. float32: the error the golden float32 numbers have themselves.
RUNS = [
    pytest.param(torch.float32, "f32", 1e-5, id="f32-f32"),
    pytest.param(torch.float32, "f64", 1e-5, id="f32-f64"),
    pytest.param(torch.float64, "f64", 1e-10, id="f64-f64"),
]


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("tiny_official_post_sine")


def record(model, images, mask):
    """Run the model and keep what its parts return."""
    seen = {}
    for name in ("backbone.0.body", "backbone.1", "transformer.encoder", "transformer.decoder"):
        model.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
    output = model(images, mask)

    def as_map(x):  # [B,25,d] -> [B,d,5,5]
        return x.transpose(1, 2).unflatten(2, (5, 5))

    return {
        "feat": seen["backbone.0.body"],
        "pos": as_map(seen["backbone.1"]),
        "memory": as_map(seen["transformer.encoder"]),
        "hs": seen["transformer.decoder"],
        "pred_logits": output.pred_logits,
        "pred_boxes": output.pred_boxes,
        "aux0_pred_logits": output.logits[0],
        "aux0_pred_boxes": output.boxes[0],
    }


@pytest.mark.parametrize(("dtype", "run", "tolerance"), RUNS)
def test_every_stage_equals_the_reference(tiny_detr, arrays, dtype, run, tolerance):
    images, mask = torch.from_numpy(arrays["images"]).to(dtype), torch.from_numpy(arrays["mask"])
    for name, found in record(tiny_detr(dtype), images, mask).items():
        np.testing.assert_allclose(
            found.detach().numpy(), arrays[f"{run}/{name}"], rtol=0, atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize(("dtype", "run", "tolerance"), RUNS)
def test_postprocessing_equals_the_reference(arrays, dtype, run, tolerance):
    logits = torch.from_numpy(arrays[f"{run}/pred_logits"]).to(dtype)
    boxes = torch.from_numpy(arrays[f"{run}/pred_boxes"]).to(dtype)
    for image, found in enumerate(postprocess(logits, boxes, arrays["img_sizes_hw"].tolist())):
        assert found["labels"].tolist() == arrays[f"{run}/post/labels"][image].tolist()
        np.testing.assert_allclose(found["scores"], arrays[f"{run}/post/scores"][image], rtol=0, atol=tolerance)
        np.testing.assert_allclose(found["boxes"], arrays[f"{run}/post/boxes"][image], rtol=0, atol=200 * tolerance)


def test_postprocessing_wants_a_size_per_image():
    with pytest.raises(ValueError, match="2 images need as many sizes, got 1"):
        postprocess(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), [(10, 10)])


def test_learned_positions_equal_the_reference(golden):
    posenc = golden("posenc")
    encoding = LearnedPositionEncoding(16)
    for name in ("row_embed", "col_embed"):
        getattr(encoding, name).weight.data = torch.from_numpy(posenc[f"learned/{name}"])
    found = encoding(torch.zeros(2, 7, 13, dtype=torch.bool))  # [2,91,32]
    expected = torch.from_numpy(posenc["learned/out_7x13"]).flatten(2).transpose(1, 2)
    assert torch.equal(found, expected)


# The options of MMDetection's configurations in tests/golden/make_mmdet_2_11.py, as arguments of this library.
MMDET_ENCODINGS = {
    "default": {"normalize": False},
    "normalize": {},
    "temperature 20, scale 1": {"temperature": 20, "scale": 1.0},
    "eps 0.5": {"eps": 0.5},
    "temperature 20": {"temperature": 20, "normalize": False},
}
MMDET_NETWORKS = {
    "default": {},
    "gelu, deeper, pre_norm": {
        "num_box_layers": 4,
        "num_ffn_layers": 3,
        "activation": "gelu",
        "box_activation": "gelu",
        "pre_norm": True,
        "position_temperature": 20,
        "position_scale": 1.0,
        "position_eps": 0.5,
    },
    "tanh, not normalized": {"activation": "tanh", "box_activation": "tanh", "position_normalize": False},
}


@pytest.mark.parametrize("name", MMDET_ENCODINGS)
def test_sine_encodings_equal_those_of_mmdetection(golden, name):
    arrays = golden("mmdet_2_11")
    encoding = SinePositionEncoding(8, **MMDET_ENCODINGS[name])
    found = encoding(torch.from_numpy(arrays["encoding/mask"])).transpose(1, 2).unflatten(2, (6, 9))
    np.testing.assert_allclose(found.numpy(), arrays[f"encoding/{name}"], rtol=0, atol=1e-6)


def test_an_offset_of_the_encoding_is_added_before_the_normalization():
    mask = torch.zeros(1, 4, 8, dtype=torch.bool)
    found = SinePositionEncoding(2, offset=-0.5, scale=1.0, eps=0.0)(mask, torch.float64).unflatten(1, (4, 8))
    row, column = (torch.arange(size, dtype=torch.float64) + 0.5 for size in (4, 8))
    torch.testing.assert_close(found[0, :, 0, 0], (row / 4).sin())
    torch.testing.assert_close(found[0, 0, :, 2], (column / 8).sin())


class Features(nn.Module):
    """A backbone that returns given features."""

    num_channels = 12

    def __init__(self, features):
        super().__init__()
        self.features = features

    def forward(self, images):
        return self.features


def test_the_network_with_pre_norm_equals_the_reference(golden):
    """In float64, with gradients, and with images that end within the feature map."""
    arrays = {name: torch.from_numpy(array) for name, array in golden("tiny_official_pre_norm").items()}
    model = DETR(
        5,
        backbone=Features(arrays["features"].double()),
        hidden_dim=16,
        num_heads=2,
        num_encoder_layers=2,
        num_decoder_layers=3,
        dim_feedforward=24,
        dropout=0.0,
        num_queries=7,
        pre_norm=True,
    ).double()
    load_weights(model, {name[8:]: array for name, array in arrays.items() if name.startswith("weights/")})
    mask = arrays["mask"].repeat_interleave(32, 1).repeat_interleave(32, 2)
    output = model(torch.zeros(3, 3, 160, 192, dtype=torch.float64), mask)
    loss = torch.zeros((), dtype=torch.float64)
    for name in ("logits", "boxes"):
        found = getattr(output, name)
        torch.testing.assert_close(found, arrays[name], rtol=0, atol=1e-10, msg=name)
        loss = loss + (found * arrays[f"factor/{name}"]).sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, arrays[f"grad/{name}"], rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("name", MMDET_NETWORKS)
def test_the_network_equals_the_head_of_mmdetection(golden, name):
    arrays = golden("mmdet_2_11")
    prefix = f"network/{name}/weights/"
    weights = {
        f"bbox_head.{key.removeprefix(prefix)}": torch.from_numpy(array)
        for key, array in arrays.items()
        if key.startswith(prefix)
    }
    model = DETR(
        5,
        backbone=Features(torch.from_numpy(arrays["network/features"])),
        hidden_dim=16,
        num_heads=2,
        num_encoder_layers=2,
        num_decoder_layers=3,
        dim_feedforward=24,
        num_queries=7,
        **MMDET_NETWORKS[name],
    )
    load_weights(model, to_original(weights))
    model.double().eval()
    mask = torch.ones(3, 160, 192, dtype=torch.bool)
    for padding, (height, width) in zip(mask, [(130, 150), (160, 96), (100, 192)], strict=True):
        padding[:height, :width] = False
    output = model(torch.zeros(3, 3, 160, 192, dtype=torch.float64), mask)
    for part, found in output._asdict().items():  # MMDetection encodes positions in float32
        np.testing.assert_allclose(found.detach().numpy(), arrays[f"network/{name}/{part}"], rtol=0, atol=1e-6)

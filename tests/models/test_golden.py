"""The outputs of facebookresearch/detr for a tiny model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detr_fast.models import postprocess
from detr_fast.models.position_encoding import LearnedPositionEncoding

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

"""Attention maps, compared with the weights that transformers and PyTorch's attention return."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from detr_fast import DETR
from detr_fast.images import to_tensor
from detr_fast.models.inference import resize, to_pil

IMAGE = np.random.default_rng(0).integers(0, 256, (96, 130, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def host():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    resnet = transformers.ResNetConfig(
        hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", out_features=["stage4"]
    )
    config = transformers.DetrConfig(
        backbone_config=resnet,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_queries=7,
        dropout=0.0,
        attn_implementation="eager",
    )
    model = transformers.DetrForObjectDetection(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def model(host, tmp_path_factory):
    directory = tmp_path_factory.mktemp("host")
    host.save_pretrained(directory)
    return DETR.from_pretrained(directory, num_heads=4, image_size=96, max_image_size=None)


@pytest.mark.parametrize("layer", [0, 1, -1])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_the_weights_are_those_of_transformers(model, host, part, layer):
    pixels = to_tensor(resize(to_pil(IMAGE, 0), 96, None))[None]
    with torch.no_grad():
        output = host(pixel_values=pixels, output_attentions=True)
    desired = (output.encoder_attentions if part == "encoder" else output.cross_attentions)[layer][0]  # [heads,Q,S]
    (actual,) = model.attention(IMAGE, part=part, layer=layer)
    height, width = actual.shape[-2:]
    assert (height, width) == (3, 5)
    assert actual.shape == ((4, 3, 5, 3, 5) if part == "encoder" else (4, 7, 3, 5))
    torch.testing.assert_close(actual.reshape(desired.shape), desired, rtol=1e-4, atol=1e-6)
    assert desired.std() > 1e-3


def test_the_weights_are_those_of_pytorch(small_detr):
    layer = small_detr().transformer.decoder.layers[0].multihead_attn
    query, key = torch.randn(2, 5, layer.out_proj.in_features), torch.randn(2, 9, layer.out_proj.in_features)
    other = nn.MultiheadAttention(layer.out_proj.in_features, layer.num_heads, batch_first=True)
    other.load_state_dict(layer.state_dict())
    _, desired = other(query, key, key, average_attn_weights=False)
    torch.testing.assert_close(layer.weights(query, key), desired)


@torch.no_grad()
def test_queries_of_detections_index_the_maps(model):
    (found,) = model.predict(IMAGE, threshold=0)
    assert sorted(found["queries"].tolist()) == list(range(7))
    output = model(to_tensor(resize(to_pil(IMAGE, 0), 96, None))[None])
    scores = output.pred_logits[0].softmax(-1)[:, :-1].amax(-1)
    torch.testing.assert_close(scores[found["queries"]], found["scores"])


def test_images_of_several_sizes(model):
    maps = model.attention([IMAGE, IMAGE[:, :60], IMAGE])
    assert [list(weights.shape[-2:]) for weights in maps] == [[3, 5], [5, 3], [3, 5]]
    torch.testing.assert_close(maps[0], maps[2])
    for weights in maps:
        torch.testing.assert_close(weights.sum((-1, -2)), torch.ones(4, 7))


def test_the_model_is_left_as_it_was(model):
    model.train()
    with pytest.raises(ValueError, match="image 0"):
        model.attention(np.zeros((3, 4), dtype=np.float32))
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    model.eval()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"layer": 2}, "the decoder has 2 layers"), ({"part": "backbone"}, "part must be 'encoder' or 'decoder'")],
)
def test_parts_and_layers_that_do_not_exist(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.attention(IMAGE, **arguments)

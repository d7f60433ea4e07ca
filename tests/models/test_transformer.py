from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detr_fast.models.position_encoding import LearnedPositionEncoding, SinePositionEncoding
from detr_fast.models.transformer import Attention, Transformer

DIM, HEADS, FEED_FORWARD = 16, 4, 24


def build(pre_norm: bool, dropout: float = 0.0, **options) -> Transformer:
    torch.manual_seed(0)
    transformer = Transformer(DIM, HEADS, 2, 3, FEED_FORWARD, dropout, pre_norm, **options).double()
    for parameter in transformer.parameters():  # biases and norms too, so that a forgotten one shows
        nn.init.normal_(parameter, std=0.3)
    return transformer


def inputs():
    features, position = torch.randn(2, 3, 12, DIM, dtype=torch.float64)
    query_position = torch.randn(5, DIM, dtype=torch.float64)
    padding = torch.arange(12)[None] >= torch.tensor([12, 7, 3])[:, None]
    return features, position, query_position, padding


class SlowAttention:
    """torch's own module with the same weights."""

    def __init__(self, attention: Attention) -> None:
        self.module = nn.MultiheadAttention(DIM, HEADS, batch_first=True).double()
        self.module.load_state_dict(attention.state_dict(), strict=True)

    def __call__(self, query, key, value, padding=None):
        return self.module(query, key, value, key_padding_mask=padding, need_weights=True)[0]


def feed_forward(layer, x):
    *hidden, last = (module for name, module in layer.named_children() if name.startswith("linear"))
    for linear in hidden:
        x = getattr(F, layer.activation)(F.linear(x, linear.weight, linear.bias))
    return F.linear(x, last.weight, last.bias)


def slow_post_norm(t: Transformer, x, position, query_position, padding):
    for layer in t.encoder.layers:
        x = layer.norm1(x + SlowAttention(layer.self_attn)(x + position, x + position, x, padding))
        x = layer.norm2(x + feed_forward(layer, x))
    memory, outputs = x, []
    x = torch.zeros(3, 5, DIM, dtype=torch.float64)
    for layer in t.decoder.layers:
        x = layer.norm1(x + SlowAttention(layer.self_attn)(x + query_position, x + query_position, x))
        x = layer.norm2(x + SlowAttention(layer.multihead_attn)(x + query_position, memory + position, memory, padding))
        x = layer.norm3(x + feed_forward(layer, x))
        outputs.append(t.decoder.norm(x))
    return torch.stack(outputs)


def slow_pre_norm(t: Transformer, x, position, query_position, padding):
    for layer in t.encoder.layers:
        y = layer.norm1(x)
        x = x + SlowAttention(layer.self_attn)(y + position, y + position, y, padding)
        x = x + feed_forward(layer, layer.norm2(x))
    memory, outputs = t.encoder.norm(x), []
    x = torch.zeros(3, 5, DIM, dtype=torch.float64)
    for layer in t.decoder.layers:
        y = layer.norm1(x)
        x = x + SlowAttention(layer.self_attn)(y + query_position, y + query_position, y)
        y = layer.norm2(x)
        x = x + SlowAttention(layer.multihead_attn)(y + query_position, memory + position, memory, padding)
        x = x + feed_forward(layer, layer.norm3(x))
        outputs.append(t.decoder.norm(x))
    return torch.stack(outputs)


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("options", [{}, {"activation": "gelu", "num_ffn_layers": 4}, {"activation": "silu"}])
def test_equals_torchs_own_attention_with_the_layers_written_out(pre_norm, options):
    transformer = build(pre_norm, **options)
    features, position, query_position, padding = inputs()
    slow = slow_pre_norm if pre_norm else slow_post_norm
    expected = slow(transformer, features, position, query_position, padding)
    found = transformer(features, position, query_position, padding)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_no_padding_is_the_same_as_none(pre_norm):
    transformer = build(pre_norm)
    features, position, query_position, padding = inputs()
    without = transformer(features, position, query_position)
    masked = transformer(features, position, query_position, torch.zeros_like(padding))
    torch.testing.assert_close(without, masked, rtol=0, atol=1e-12)


def test_padding_is_never_looked_at():
    transformer = build(pre_norm=False)
    features, position, query_position, padding = inputs()
    expected = transformer(features, position, query_position, padding)
    features[padding] = 1e3
    position[padding] = -1e3
    assert torch.equal(transformer(features, position, query_position, padding), expected)


def test_only_pre_norm_has_an_encoder_norm():
    assert "encoder.norm.weight" in build(pre_norm=True).state_dict()
    assert "encoder.norm.weight" not in build(pre_norm=False).state_dict()


def test_dropout_is_active_in_training_only():
    transformer = build(pre_norm=False, dropout=0.5)
    arguments = inputs()
    torch.manual_seed(1)
    assert not torch.equal(transformer(*arguments), transformer(*arguments))
    transformer.eval()
    assert torch.equal(transformer(*arguments), transformer(*arguments))


def test_attention_weights_are_dropped_too():
    attention = Attention(DIM, HEADS, dropout=0.5)
    x = torch.randn(1, 6, DIM)
    torch.manual_seed(1)
    assert not torch.equal(attention(x, x, x), attention(x, x, x))


def test_initialisation():
    transformer = Transformer(64, 4, 2, 2, 128, 0.1, False)
    for name, parameter in transformer.named_parameters():
        if parameter.dim() > 1:
            bound = (6 / sum(parameter.shape)) ** 0.5  # Xavier, uniform
            assert 0.9 * bound < parameter.abs().max() <= bound, name
        elif "in_proj_bias" in name or "out_proj.bias" in name:
            assert not parameter.any(), name


@pytest.mark.parametrize("encoding", [SinePositionEncoding(4), LearnedPositionEncoding(4)])
def test_position_encodings_have_one_layout(encoding):
    mask = torch.zeros(2, 5, 3, dtype=torch.bool)
    found = encoding(mask, torch.float64)
    assert (found.shape, found.dtype) == ((2, 15, 8), torch.float64)
    grid = found.unflatten(1, (5, 3))[..., :4]
    vary = (grid[:, :1] != grid).any() if isinstance(encoding, SinePositionEncoding) else (grid[:, :, :1] != grid).any()
    assert vary  # rows first in the sine encoding, columns first in the learned one


@pytest.mark.parametrize("name", ["temperature", "scale", "eps", "offset"])
def test_what_is_no_number_is_named_when_the_encoding_is_built(name):
    with pytest.raises(TypeError, match=f"{name} must be a number, got 'x'"):
        SinePositionEncoding(4, **{name: "x"})


def test_learned_positions_say_where_they_end():
    encoding = LearnedPositionEncoding(4)
    encoding(torch.zeros(1, 50, 50, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"has 50 rows and columns, but the feature map is 20x51"):
        encoding(torch.zeros(1, 20, 51, dtype=torch.bool))

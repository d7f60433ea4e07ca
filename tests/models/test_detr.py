from __future__ import annotations

import pytest
import torch
from torch import nn

from detr_fast import detr_resnet50


def count(parameters) -> int:
    return sum(p.numel() for p in parameters)


def reference_keys() -> set[str]:
    """The names in the ResNet-50 checkpoints of facebookresearch/detr, written from their description."""
    norm = ("weight", "bias", "running_mean", "running_var")
    keys = {"backbone.0.body.conv1.weight", "query_embed.weight", "input_proj.weight", "input_proj.bias"}
    keys |= {f"backbone.0.body.bn1.{x}" for x in norm}
    for stage, depth in enumerate((3, 4, 6, 3), 1):
        for block in range(depth):
            prefix = f"backbone.0.body.layer{stage}.{block}"
            keys |= {f"{prefix}.conv{i}.weight" for i in (1, 2, 3)}
            keys |= {f"{prefix}.bn{i}.{x}" for i in (1, 2, 3) for x in norm}
        first = f"backbone.0.body.layer{stage}.0.downsample"
        keys |= {f"{first}.0.weight"} | {f"{first}.1.{x}" for x in norm}
    for stack, attentions, norms in (("encoder", ["self_attn"], 2), ("decoder", ["self_attn", "multihead_attn"], 3)):
        for layer in range(6):
            prefix = f"transformer.{stack}.layers.{layer}"
            for attention in attentions:
                parts = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
                keys |= {f"{prefix}.{attention}.{part}" for part in parts}
            modules = ["linear1", "linear2", *(f"norm{i + 1}" for i in range(norms))]
            keys |= {f"{prefix}.{module}.{x}" for module in modules for x in ("weight", "bias")}
    heads = ["transformer.decoder.norm", "class_embed", *(f"bbox_embed.layers.{i}" for i in range(3))]
    return keys | {f"{head}.{x}" for head in heads for x in ("weight", "bias")}


def test_resnet50_has_the_reference_parameters_and_keys():
    with torch.device("meta"):
        model = detr_resnet50()
    assert count(model.parameters()) == 41_524_768
    assert count(p for p in model.parameters() if p.requires_grad) == 41_302_368
    assert model.state_dict().keys() == reference_keys()
    assert model.class_embed.weight.shape == (92, 256)


def test_learned_positions_have_the_reference_keys(small_detr):
    keys = small_detr(position_encoding="learned").state_dict().keys()
    assert {"backbone.1.row_embed.weight", "backbone.1.col_embed.weight"} <= keys


def test_output_of_every_layer(small_detr):
    output = small_detr(num_decoder_layers=3)(torch.randn(2, 3, 40, 56))
    assert output.logits.shape == (3, 2, 5, 4)
    assert output.boxes.shape == (3, 2, 5, 4)
    assert torch.equal(output.pred_logits, output.logits[2])
    assert torch.equal(output.pred_boxes, output.boxes[2])
    assert ((output.boxes > 0) & (output.boxes < 1)).all()


@pytest.mark.parametrize("position_encoding", ["sine", "learned"])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_gradients_reach_every_trainable_parameter(small_detr, position_encoding, pre_norm):
    model = small_detr(position_encoding=position_encoding, pre_norm=pre_norm)
    for parameter in model.transformer.parameters():
        nn.init.normal_(parameter, std=0.2)  # biases start at zero and would block gradients
    images, mask = torch.randn(2, 3, 40, 56), torch.zeros(2, 40, 56, dtype=torch.bool)
    mask[1, 24:] = True
    output = model(images, mask)
    (output.logits.square().sum() + output.boxes.square().sum()).backward()
    # The first decoder layer starts from zeros: a scale of them, or weights applied to them, changes nothing.
    first = "transformer.decoder.layers.0"
    starved = f"{first}.norm1.weight" if pre_norm else f"{first}.self_attn.in_proj_weight"
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any() or name == starved, name


def test_more_padding_changes_nothing(tiny_detr):
    model, image = tiny_detr(), torch.randn(1, 3, 64, 64)

    def detect(height, width):
        images, mask = torch.zeros(1, 3, height, width), torch.ones(1, height, width, dtype=torch.bool)
        images[..., :64, :64], mask[:, :64, :64] = image, False
        return model(images, mask)

    expected = detect(128, 128)  # the convolutions see no farther than this
    for size in ((128, 160), (224, 128), (256, 320)):
        found = detect(*size)
        torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-5)


def test_dropout_is_active_in_training_only(small_detr):
    model, images = small_detr(dropout=0.5), torch.randn(1, 3, 40, 40)
    assert not torch.equal(model(images).logits, model(images).logits)
    model.eval()
    assert torch.equal(model(images).logits, model(images).logits)


def test_bfloat16(small_detr):
    images, mask = torch.randn(2, 3, 40, 40), torch.zeros(2, 40, 40, dtype=torch.bool)
    expected = small_detr().eval()(images, mask)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = small_detr().eval()(images, mask)
    converted = small_detr().eval().bfloat16()(images.bfloat16(), mask)
    for found in (autocast, converted):
        torch.testing.assert_close(found.boxes.float(), expected.boxes, rtol=0, atol=0.05)


@pytest.mark.slow
def test_resnet50_trains_a_step_on_a_coco_sized_image():
    torch.manual_seed(0)
    model = detr_resnet50(num_encoder_layers=1, num_decoder_layers=1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    output = model(torch.randn(1, 3, 800, 1066), torch.zeros(1, 800, 1066, dtype=torch.bool))
    (output.logits.square().sum() + output.boxes.square().sum()).backward()
    torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1e-12).step()
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        if not parameter.requires_grad:
            assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes must be an integer of at least 1, got 0"),
        ({"num_queries": 2.5}, "num_queries must be an integer of at least 1, got 2.5"),
        ({"num_decoder_layers": 0}, "num_decoder_layers must be an integer of at least 1"),
        ({"num_decoder_layers": 1001}, "num_decoder_layers must be at most 1000, got 1001"),
        ({"num_ffn_layers": 1}, "num_ffn_layers must be an integer of at least 2, got 1"),
        ({"num_ffn_layers": 1001}, "num_ffn_layers must be at most 1000"),
        ({"num_box_layers": 0}, "num_box_layers must be an integer of at least 1, got 0"),
        ({"activation": "glu"}, "activation must be one of relu, leaky_relu, elu, gelu, silu, tanh, got 'glu'"),
        ({"box_activation": ["relu"]}, "box_activation must be one of"),
        ({"position_temperature": 0}, "temperature is the base of the wavelengths; it must be finite and above 0"),
        ({"position_normalize": 1}, "position_normalize must be True or False, got 1"),
        ({"position_scale": "x"}, "position_scale must be a finite number, got 'x'"),
        ({"position_eps": -1.0}, "position_eps must be at least 0, got -1.0"),
        ({"position_offset": float("nan")}, "position_offset must be a finite number, got nan"),
        ({"hidden_dim": 20, "num_heads": 8}, "divisible by num_heads.*hidden_dim=20, num_heads=8"),
        ({"hidden_dim": 18, "num_heads": 2}, "by 4 for the position encoding"),
        ({"dropout": 1.5}, "dropout must be a probability below 1, got 1.5"),
        ({"backbone": "vgg"}, "unknown backbone 'vgg'; choose one of resnet18"),
        ({"backbone": nn.Identity()}, "num_channels"),
        ({"position_encoding": "cosine"}, "must be 'sine' or 'learned', got 'cosine'"),
        ({"max_image_size": 0}, "max_image_size must be an integer from 1 to 16384, got 0"),
        ({"image_size": 10**9}, "image_size must be an integer from 1 to 16384"),
        ({"pre_norm": "no"}, "pre_norm must be True or False, got 'no'"),
        ({"norm_between_layers": 1}, "norm_between_layers must be True or False, got 1"),
        ({"dropout": "0.1"}, "dropout must be a probability below 1, got '0.1'"),
        ({"num_queries": True}, "num_queries must be an integer of at least 1, got True"),
        ({"categories": "cat"}, "categories must be a sequence of mappings, got str"),
        ({"categories": [{"id": "1", "name": "a"}]}, "id of category 0 must be an integer and its name a string"),
        ({"num_classes": 1, "categories": [{"id": 1, "name": "a"}] * 2}, "2 categories do not fit into 1 classes"),
        ({"categories": [{"id": 1}]}, "category 0 needs an id and a name"),
    ],
)
def test_bad_arguments_are_named(small_detr, arguments, message):
    with pytest.raises(ValueError, match=message):
        small_detr(**arguments)


@pytest.mark.parametrize(
    ("images", "mask", "message"),
    [
        (torch.zeros(3, 40, 40), None, r"\[B,3,H,W\], got torch.float32 \[3, 40, 40\]"),
        (torch.zeros(1, 4, 40, 40), None, r"got torch.float32 \[1, 4, 40, 40\]"),
        (torch.zeros(1, 3, 40, 40, dtype=torch.uint8), None, "got torch.uint8.*predict accepts images of any size"),
        (torch.zeros(1, 3, 40, 40), torch.zeros(1, 40, 41, dtype=torch.bool), r"mask must be bool \[1, 40, 40\]"),
        (torch.zeros(1, 3, 40, 40), torch.zeros(1, 40, 40), "got torch.float32"),
    ],
)
def test_bad_batches_are_named(small_detr, images, mask, message):
    with pytest.raises(ValueError, match=message):
        small_detr()(images, mask)

from __future__ import annotations

import pytest
import torch

from detr_fast import DETR
from detr_fast.checkpoints.formats import (
    COCO_ROWS,
    FORMATS,
    convert_classes,
    from_original,
    recognize_format,
    to_original,
)
from detr_fast.cli import main
from detr_fast.models import CheckpointError, convert_checkpoint, read_state_dict

SMALL = {
    "backbone": "resnet18",
    "hidden_dim": 16,
    "num_heads": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "dim_feedforward": 24,
    "num_queries": 5,
}


@pytest.fixture(scope="module")
def detr() -> DETR:
    torch.manual_seed(0)
    return DETR(91, **SMALL)


@pytest.fixture
def weights(detr) -> dict[str, torch.Tensor]:
    return dict(detr.state_dict())


def assert_equal(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", ["original", *FORMATS])
def test_round_trips_are_exact(name, weights):
    converted = from_original(weights, name)
    assert recognize_format(converted) == name
    assert_equal(to_original(converted), weights)
    if name != "original":
        assert not converted.keys() & weights.keys()


@pytest.mark.parametrize("name", ["mmdet2", "mmdet3"])
def test_deeper_networks_there_and_back(name):
    weights = dict(DETR(5, **SMALL, num_ffn_layers=4, num_box_layers=5, pre_norm=name == "mmdet2").state_dict())
    converted = from_original(weights, name)
    assert {f"bbox_head.reg_ffn.layers.{layer}.weight" for layer in ("0.0", "1.0", "2.0", "3")} <= converted.keys()
    assert_equal(to_original(converted), weights)


def test_networks_that_a_format_cannot_represent(tmp_path):
    for options, to, message in (
        ({"num_box_layers": 2}, "mmdet2", "no equivalent in the format 'mmdet2': bbox_embed.layers.0"),
        ({"num_ffn_layers": 3}, "huggingface", "no equivalent in the format 'huggingface': .*linear3"),
        ({"num_box_layers": 4}, "huggingface", "has num_box_layers=3; this one has num_box_layers=4"),
    ):
        torch.save(DETR(5, **SMALL, **options).state_dict(), tmp_path / "model.pth")
        target = tmp_path / ("converted" if to == "huggingface" else "converted.pth")
        with pytest.raises(CheckpointError, match=message):
            convert_checkpoint(tmp_path / "model.pth", target, to)
        assert not target.exists()


# Names of each kind, as releases of the libraries write them.
SAMPLES = {
    "huggingface": {
        "model.backbone.conv_encoder.model.embedder.embedder.convolution.weight": "backbone.0.body.conv1.weight",
        "model.backbone.conv_encoder.model.encoder.stages.1.layers.0.shortcut.normalization.running_var": (
            "backbone.0.body.layer2.0.downsample.1.running_var"
        ),
        "model.backbone.conv_encoder.model.encoder.stages.3.layers.1.layer.1.convolution.weight": (
            "backbone.0.body.layer4.1.conv2.weight"
        ),
        "model.decoder.layers.1.encoder_attn.out_proj.bias": (
            "transformer.decoder.layers.1.multihead_attn.out_proj.bias"
        ),
        "model.decoder.layers.0.final_layer_norm.weight": "transformer.decoder.layers.0.norm3.weight",
        "model.encoder.layers.0.final_layer_norm.weight": "transformer.encoder.layers.0.norm2.weight",
        "model.decoder.layernorm.bias": "transformer.decoder.norm.bias",
        "bbox_predictor.layers.2.weight": "bbox_embed.layers.2.weight",
    },
    "huggingface_timm": {
        "model.backbone.conv_encoder.model.layer3.0.downsample.0.weight": (
            "backbone.0.body.layer3.0.downsample.0.weight"
        ),
        "class_labels_classifier.bias": "class_embed.bias",
    },
    "mmdet2": {
        "bbox_head.transformer.decoder.layers.1.attentions.1.attn.in_proj_weight": (
            "transformer.decoder.layers.1.multihead_attn.in_proj_weight"
        ),
        "bbox_head.transformer.encoder.layers.0.ffns.0.layers.0.0.weight": (
            "transformer.encoder.layers.0.linear1.weight"
        ),
        "bbox_head.transformer.decoder.post_norm.bias": "transformer.decoder.norm.bias",
        "bbox_head.input_proj.weight": "input_proj.weight",
        "bbox_head.query_embedding.weight": "query_embed.weight",
    },
    "mmdet3": {
        "neck.convs.0.conv.bias": "input_proj.bias",
        "decoder.layers.0.cross_attn.attn.out_proj.bias": "transformer.decoder.layers.0.multihead_attn.out_proj.bias",
        "encoder.layers.0.ffn.layers.1.bias": "transformer.encoder.layers.0.linear2.bias",
        "decoder.layers.1.norms.2.weight": "transformer.decoder.layers.1.norm3.weight",
        "bbox_head.reg_ffn.layers.0.0.weight": "bbox_embed.layers.0.weight",
        "bbox_head.fc_reg.bias": "bbox_embed.layers.2.bias",
        "backbone.layer1.0.bn2.running_mean": "backbone.0.body.layer1.0.bn2.running_mean",
    },
}


@pytest.mark.parametrize("name", SAMPLES)
def test_names_are_those_of_the_format(name, weights):
    converted = from_original(weights, name)
    for name_in_format, original in SAMPLES[name].items():
        assert torch.equal(converted[name_in_format], weights[original])


def _newer_huggingface(name: str) -> str:
    name = name.replace("backbone.conv_encoder.model", "backbone.model").replace("_attn.out_proj", "_attn.o_proj")
    return name.replace(".fc1", ".mlp.fc1").replace(".fc2", ".mlp.fc2")


def _older_mmdet2(name: str) -> str:
    name = name.replace("attentions.0", "self_attn").replace("attentions.1", "multihead_attn")
    return name.replace("ffns.0", "ffn").replace("decoder.post_norm", "decoder.norm")


@pytest.mark.parametrize(
    ("name", "respell"),
    [("huggingface", _newer_huggingface), ("huggingface_timm", _newer_huggingface), ("mmdet2", _older_mmdet2)],
)
def test_other_generations_of_names(name, respell, weights):
    converted = from_original(weights, name)
    respelled = {respell(key): tensor for key, tensor in converted.items()}
    assert respelled.keys() != converted.keys()
    respelled["backbone.bn1.num_batches_tracked"] = torch.tensor(3)
    assert_equal(to_original(respelled), weights)


def test_classes_there_and_back(weights):
    to_80 = convert_classes(weights, 80)
    assert to_80["class_embed.weight"].shape == (81, 16)
    assert torch.equal(to_80["class_embed.bias"][[0, 11, 79, 80]], weights["class_embed.bias"][[1, 13, 90, 91]])
    to_91 = convert_classes(to_80, 91)
    assert_equal(convert_classes(to_91, 80), to_80)
    hidden = torch.randn(7, 16)
    scores = [(hidden @ w["class_embed.weight"].T + w["class_embed.bias"]).softmax(-1) for w in (to_80, to_91)]
    torch.testing.assert_close(scores[1][:, COCO_ROWS], scores[0])
    assert scores[1].sum(-1) == pytest.approx(1)
    assert len(COCO_ROWS) == len(set(COCO_ROWS)) == 81
    with pytest.raises(CheckpointError, match="this one is for 7 classes, and 80 were requested"):
        convert_classes(weights | {"class_embed.bias": torch.zeros(8)}, 80)


def test_the_command_converts_files(detr, weights, tmp_path, capsys):
    torch.save({"model": weights}, tmp_path / "original.pth")
    main_ = [str(tmp_path / "original.pth")]
    for to in ("mmdet2", "mmdet3"):
        main_exits(["convert", *main_, str(tmp_path / f"{to}.pth"), "--to", to, "--classes", "80"])
        assert recognize_format(read_state_dict(tmp_path / f"{to}.pth")) == to
        assert f"({to}): {len(weights)} tensors, 80 classes" in capsys.readouterr().out
        main_exits(["convert", str(tmp_path / f"{to}.pth"), str(tmp_path / "back.safetensors"), "--classes", "91"])
        assert_equal(convert_classes(read_state_dict(tmp_path / "back.safetensors"), 80), convert_classes(weights, 80))


def main_exits(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code, ended.value.code


def test_missing_and_unknown_names_are_listed(weights, tmp_path):
    converted = from_original(weights, "mmdet3")
    converted["mask_head.conv.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"1 names are not part of a DETR \(mmdet3\): mask_head\.conv\.weight"):
        to_original(converted)
    del converted["mask_head.conv.weight"], converted["decoder.layers.1.norms.2.bias"]
    torch.save(converted, tmp_path / "incomplete.pth")
    with pytest.raises(
        SystemExit, match=r"1 missing from the checkpoint: transformer\.decoder\.layers\.1\.norm3\.bias"
    ):
        main(["convert", str(tmp_path / "incomplete.pth"), str(tmp_path / "out.pth")])
    huggingface = from_original(weights, "huggingface")
    del huggingface["model.encoder.layers.0.self_attn.k_proj.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing .*model\.encoder\.layers\.0\.self_attn\.k_proj\.bias"):
        to_original(huggingface)
    with pytest.raises(CheckpointError, match="not a DETR of facebookresearch/detr, Hugging Face or MMDetection"):
        recognize_format(["fc.weight"])
    torch.save(weights, tmp_path / "complete.pth")
    with pytest.raises(SystemExit, match="'huggingface' is written as a directory"):
        main(["convert", str(tmp_path / "complete.pth"), str(tmp_path / "out.pth"), "--to", "huggingface"])


@pytest.mark.parametrize("name", ["original", *FORMATS])
def test_files_of_all_formats_are_loaded(name, detr, weights, tmp_path):
    torch.save(from_original(weights, name), tmp_path / "weights.pth")
    loaded = DETR.from_pretrained(tmp_path / "weights.pth", num_heads=2)
    assert not loaded.training
    assert_equal(loaded.state_dict(), weights)
    images = torch.randn(1, 3, 64, 64)
    detr.eval()
    assert torch.equal(loaded(images).logits, detr(images).logits)

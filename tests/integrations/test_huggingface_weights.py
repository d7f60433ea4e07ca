"""Weights of the DETR of transformers, converted in both directions."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed; it is in the extra 'test'")

from detr_fast import DETR
from detr_fast.checkpoints.formats import recognize_format, to_original
from detr_fast.models import CheckpointError, convert_checkpoint, read_state_dict


@pytest.fixture(scope="module", params=[False, True], ids=["", "auxiliary_loss"])
def huggingface(backbone, request):
    """A DETR of transformers with a ResNet-18, random weights and random statistics in its batch norms."""
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    torch.manual_seed(0)
    if backbone == "huggingface_timm":
        resnet = {"use_timm_backbone": True, "backbone": "resnet18", "use_pretrained_backbone": False}
    else:
        shape = {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"}
        resnet = {"backbone_config": ResNetConfig(**shape, out_features=["stage4"])}
    config = DetrConfig(
        **resnet,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_queries=7,
        num_labels=5,
        dropout=0.0,
        auxiliary_loss=request.param,
    )
    model = DetrForObjectDetection(config).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.5, 0.5)  # higher ones would leave no features
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
        elif name.endswith("weight"):
            buffer.uniform_(0.2, 0.6)
    for name, parameter in model.named_parameters():
        parameter.data += (0.02 if "backbone" in name else 0.2) * torch.randn_like(parameter)
    return model


@pytest.fixture
def batch():
    torch.manual_seed(1)
    mask = torch.zeros(2, 96, 128, dtype=torch.bool)
    mask[1, :, 70:] = True
    return torch.randn(2, 3, 96, 128), mask


@torch.no_grad()
def assert_the_same(model, host, batch):
    images, mask = batch
    found, expected = model(images, mask), host(pixel_values=images, pixel_mask=(~mask).long())
    assert model.transformer.decoder.norm_between_layers == host.config.auxiliary_loss
    torch.testing.assert_close(found.pred_logits, expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, rtol=0, atol=1e-5)
    assert expected.logits.std(1).min() > 1e-4  # over the queries, which tell features apart


def test_weights_of_transformers_are_loaded(huggingface, backbone, batch, tmp_path, caplog):
    huggingface.save_pretrained(tmp_path)
    assert recognize_format(read_state_dict(tmp_path / "model.safetensors")) == backbone
    assert recognize_format(huggingface.state_dict()) == backbone
    model = DETR.from_pretrained(tmp_path)
    assert model.categories[3] == {"id": 3, "name": "LABEL_3"}
    assert_the_same(model, huggingface, batch)
    from_memory = to_original(huggingface.state_dict())  # the newer names
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in from_memory.items())
    assert not caplog.records
    renumbered = DETR.from_pretrained(tmp_path, num_classes=9)
    assert (renumbered.num_classes, renumbered.categories) == (9, None)
    model.save_pretrained(tmp_path / "again")
    assert_the_same(DETR.from_pretrained(tmp_path / "again"), huggingface, batch)
    with pytest.raises(CheckpointError, match="trained with norm_between_layers="):
        DETR.from_pretrained(tmp_path, norm_between_layers=not huggingface.config.auxiliary_loss)


def test_auxiliary_outputs_of_transformers(huggingface, batch, tmp_path):
    if not huggingface.config.auxiliary_loss:
        pytest.skip("the model has no auxiliary outputs")
    huggingface.save_pretrained(tmp_path)
    images, mask = batch
    with torch.no_grad():
        hidden = huggingface.model(pixel_values=images, pixel_mask=(~mask).long()).intermediate_hidden_states
        expected = huggingface.class_labels_classifier(hidden[:-1])
        found = DETR.from_pretrained(tmp_path)(images, mask).logits[:-1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_activation_of_transformers_is_taken_over_and_converted(huggingface, backbone, batch, tmp_path):
    from transformers import DetrForObjectDetection

    config = deepcopy(huggingface.config)
    config.activation_function = "gelu"
    host = DetrForObjectDetection(config).eval()
    host.load_state_dict(huggingface.state_dict())
    host.save_pretrained(tmp_path / "saved")
    model = DETR.from_pretrained(tmp_path / "saved")
    assert_the_same(model, host, batch)
    with pytest.raises(CheckpointError, match="trained with activation='gelu', but 'relu' is given"):
        DETR.from_pretrained(tmp_path / "saved", activation="relu")
    torch.save(model.state_dict(), tmp_path / "model.pth")
    options = {"num_heads": 4, "norm_between_layers": config.auxiliary_loss, "activation": "gelu"}
    convert_checkpoint(tmp_path / "model.pth", tmp_path / "converted", backbone, **options)
    assert_the_same(model, DetrForObjectDetection.from_pretrained(tmp_path / "converted").eval(), batch)


def test_other_networks_of_transformers_are_refused(huggingface, tmp_path):
    huggingface.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for changed in ({"activation_function": "gelu_new"}, {"decoder_attention_heads": 2}, {"d_model": 64}):
        (tmp_path / "config.json").write_text(json.dumps(config | changed))
        with pytest.raises(
            CheckpointError, match=r"only .* is supported|activation must be one|weights are those of a DETR"
        ):
            DETR.from_pretrained(tmp_path)


def test_transformers_loads_converted_weights(huggingface, backbone, batch, tmp_path):
    from transformers import DetrForObjectDetection

    huggingface.save_pretrained(tmp_path / "saved")
    model = DETR.from_pretrained(tmp_path / "saved")
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    auxiliary = huggingface.config.auxiliary_loss
    done = convert_checkpoint(
        tmp_path / "model.pth", tmp_path / "converted", backbone, num_heads=4, norm_between_layers=auxiliary
    )
    assert f"({backbone})" in done
    converted = DetrForObjectDetection.from_pretrained(tmp_path / "converted").eval()
    assert_the_same(model, converted, batch)
    expected = huggingface.state_dict()
    assert converted.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in converted.state_dict().items())
    assert json.loads((tmp_path / "converted/config.json").read_text())["decoder_layers"] == 2


def test_the_detector_of_a_panoptic_model_is_loaded(huggingface, backbone, batch, tmp_path, caplog):
    from transformers import DetrForSegmentation

    config = deepcopy(huggingface.config)
    config.encoder_attention_heads = config.decoder_attention_heads = 8  # the mask head needs a multiple of 8
    if backbone == "huggingface":  # timm's has all stages
        config.backbone_config.out_features = ["stage1", "stage2", "stage3", "stage4"]
    panoptic = DetrForSegmentation(config).eval()
    panoptic.detr.load_state_dict(huggingface.state_dict())
    panoptic.save_pretrained(tmp_path)
    assert_the_same(DETR.from_pretrained(tmp_path), panoptic.detr, batch)
    assert "loaded its detector, and left out the" in caplog.text


def test_a_dilated_backbone_is_written_for_timm(import_or_skip, batch, tmp_path):
    import_or_skip("timm")
    from transformers import DetrForObjectDetection

    torch.manual_seed(0)
    shape = {"hidden_dim": 32, "num_encoder_layers": 1, "num_decoder_layers": 1, "dim_feedforward": 8}
    model = DETR(5, backbone="resnet50_dc5", num_heads=4, **shape).eval()
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="this one has 'resnet50_dc5'"):
        convert_checkpoint(tmp_path / "saved", tmp_path / "own", "huggingface")
    convert_checkpoint(tmp_path / "saved", tmp_path / "timm", "huggingface_timm")
    host = DetrForObjectDetection.from_pretrained(tmp_path / "timm").eval()
    assert_the_same(model, host, batch)
    assert_the_same(DETR.from_pretrained(tmp_path / "timm"), host, batch)

"""The Table Transformer of transformers, which is a DETR with pre_norm, loaded, compared and converted."""

from __future__ import annotations

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

pytest.importorskip("transformers", reason="transformers is not installed; it is in the extra 'test'")

from detr_fast import DETR
from detr_fast.checkpoints.formats import recognize_format, to_original
from detr_fast.data import Category
from detr_fast.images import pad_images, to_tensor
from detr_fast.models import CheckpointError, convert_checkpoint, read_state_dict
from detr_fast.models.inference import resize, to_pil

TOLERANCE = 1e-9
SIZES = [(64, 96), (50, 70), (33, 90)]
SMALL = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_queries": 7,
    "num_labels": 5,
    "dropout": 0.0,
}


class _InDouble(TorchFunctionMode):
    """Computes in float64 what a model casts to float32, such as the position encoding."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return (torch.Tensor.double if function is torch.Tensor.float else function)(*args, **kwargs)


def _backbone(kind: str) -> dict[str, object]:
    from transformers import ResNetConfig

    if kind == "huggingface_timm":
        return {"use_timm_backbone": True, "backbone": "resnet18", "use_pretrained_backbone": False}
    shape = {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"}
    return {"backbone_config": ResNetConfig(**shape, out_features=["stage4"])}


def _build(**options):
    """A Table Transformer with random weights, and random statistics in its batch norms."""
    from transformers import TableTransformerConfig, TableTransformerForObjectDetection

    torch.manual_seed(0)
    model = TableTransformerForObjectDetection(TableTransformerConfig(**options)).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.5, 0.5)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
        elif name.endswith("weight"):
            buffer.uniform_(0.2, 0.6)
    for name, parameter in model.named_parameters():
        parameter.data += (0.02 if "backbone" in name else 0.2) * torch.randn_like(parameter)
    return model.requires_grad_(True)  # transformers freezes more stages of its own ResNet than of timm's


@pytest.fixture(scope="module", params=[False, True], ids=["", "auxiliary_loss"])
def host(request, backbone):
    return _build(**SMALL, **_backbone(backbone), auxiliary_loss=request.param)


@contextmanager
def _in_double(*models):
    """The models in float64, and afterwards in float32 again, without gradients."""
    for model in models:
        model.double()
    try:
        yield
    finally:
        for model in models:
            model.zero_grad()
            model.float()


def _losses(logits, boxes):
    generator = torch.Generator().manual_seed(1)
    return sum((x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum() for x in (logits, boxes))


def assert_the_same(model, host):
    """Logits, boxes and all gradients, in float64, for images of different sizes in a padded batch."""
    generator = torch.Generator().manual_seed(2)
    images, mask = pad_images([torch.randn(3, *size, generator=generator, dtype=torch.float64) for size in SIZES])
    with _in_double(model, host):
        output = model(images, mask)
        with _InDouble():
            expected = host(pixel_values=images, pixel_mask=(~mask).long())
        found = output.pred_logits, output.pred_boxes
        for actual, desired in zip(found, (expected.logits, expected.pred_boxes), strict=True):
            torch.testing.assert_close(actual, desired, rtol=0, atol=TOLERANCE)
            assert desired.std(1).mean() > 1e-4  # over the queries
        _losses(*found).backward()
        _losses(expected.logits, expected.pred_boxes).backward()
        gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in host.named_parameters()}
        desired = to_original(gradients)
        actual = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert "transformer.encoder.norm.weight" in actual
        for name, gradient in actual.items():
            scale = desired[name].abs().max().item()
            torch.testing.assert_close(gradient, desired[name], rtol=0, atol=TOLERANCE * max(scale, 1), msg=name)
        without = [name for name, gradient in actual.items() if gradient.abs().max() < 1e-9]
        assert without == ["transformer.decoder.layers.0.norm1.weight"]  # normalizes zeros


def test_its_weights_are_loaded(host, backbone, tmp_path, caplog):
    host.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "table-transformer"
    assert recognize_format(read_state_dict(tmp_path / "model.safetensors")) == backbone
    model = DETR.from_pretrained(tmp_path)
    assert model.transformer.decoder.norm_between_layers == host.config.auxiliary_loss
    assert model.categories[3] == {"id": 3, "name": "LABEL_3"}
    assert_the_same(model, host)
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["pre_norm"] is True
    assert_the_same(DETR.from_pretrained(tmp_path / "again"), host)
    assert not caplog.records


def test_transformers_loads_converted_weights(host, backbone, tmp_path):
    from transformers import AutoModelForObjectDetection, TableTransformerForObjectDetection

    host.save_pretrained(tmp_path / "saved")
    options = {"num_heads": 4, "norm_between_layers": host.config.auxiliary_loss}
    convert_checkpoint(tmp_path / "saved/model.safetensors", tmp_path / "original.pth", "original")
    assert f"({backbone})" in convert_checkpoint(tmp_path / "original.pth", tmp_path / "back", backbone, **options)
    converted = AutoModelForObjectDetection.from_pretrained(tmp_path / "back").eval()
    assert isinstance(converted, TableTransformerForObjectDetection)
    expected = host.state_dict()
    assert converted.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in converted.state_dict().items())
    from_file = DETR.from_pretrained(tmp_path / "original.pth", **options)  # as the files of Table Transformer
    assert_the_same(from_file, converted)


def test_a_file_of_weights_tells_that_it_is_one(host, tmp_path):
    host.save_pretrained(tmp_path)
    for source in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(CheckpointError, match="a DETR with pre_norm=True, but the arguments say False"):
            DETR.from_pretrained(source, pre_norm=False)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "detr"}))
    with pytest.raises(CheckpointError, match=r"a DETR with pre_norm=True, but config\.json says False"):
        DETR.from_pretrained(tmp_path)


def test_a_run_starts_from_it(host, tmp_path):
    from detr_fast.training import DataConfig, ModelConfig
    from detr_fast.training.model import build_model

    host.save_pretrained(tmp_path)
    shape = {"hidden_dim": 32, "num_encoder_layers": 2, "num_decoder_layers": 3, "dim_feedforward": 48}
    options = shape | {"num_heads": 4, "num_queries": 7, "norm_between_layers": host.config.auxiliary_loss}
    config = ModelConfig(weights=str(tmp_path), backbone="resnet18", pre_norm=True, dropout=0.0, **options)
    categories = [Category(number, f"class {number}") for number in range(5)]
    model = build_model(config, DataConfig("images", "train.json", "images", "val.json"), categories)
    assert model.training
    assert_the_same(model.eval(), host)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_its_attention_weights(host, part, tmp_path):
    host.save_pretrained(tmp_path)
    model = DETR.from_pretrained(tmp_path, image_size=96, max_image_size=None)
    image = np.random.default_rng(0).integers(0, 256, (96, 130, 3), dtype=np.uint8)
    with torch.no_grad():
        output = host(pixel_values=to_tensor(resize(to_pil(image, 0), 96, None))[None], output_attentions=True)
    for layer in (0, -1):
        desired = (output.encoder_attentions if part == "encoder" else output.cross_attentions)[layer][0]
        (actual,) = model.attention(image, part=part, layer=layer)
        torch.testing.assert_close(actual.reshape(desired.shape), desired, rtol=0, atol=1e-5)
        assert desired.std() > 1e-4


@pytest.mark.slow
def test_the_default_configuration(import_or_skip, tmp_path):
    """A ResNet-50, six layers of 256 features, and 100 queries."""
    import_or_skip("timm")
    host = _build()
    host.save_pretrained(tmp_path)
    assert_the_same(DETR.from_pretrained(tmp_path), host)

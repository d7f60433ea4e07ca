"""Saved models whose files are malformed or hostile, and those of the Hugging Face Hub."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from detr_fast import DETR
from detr_fast.models import CheckpointError


@pytest.fixture
def saved(tmp_path, small_detr) -> Path:
    small_detr(categories=[{"id": 1, "name": "cat"}]).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


DEEP = "[" * 100_000 + "]" * 100_000
CONFIGS: dict[str, Any] = {
    "no object": [],
    "a number": 3,
    "null": None,
    "no JSON": "{",
    "nested too deeply": DEEP,
    "nested in an option": '{"categories": ' + DEEP + "}",
    "a number of 5000 digits": '{"num_classes": ' + "9" * 5000 + "}",
    "no UTF-8": b"\xff\xfe{}",
    "too large": b'{"backbone": "' + b"x" * 10**7 + b'"}',
    "many queries": {"num_queries": 10**9},
    "wide": {"hidden_dim": 10**6},
    "deep": {"num_decoder_layers": 10**5},
    "deep encoder": {"num_encoder_layers": 10**9},
    "no layers": {"num_decoder_layers": 0},
    "beyond 64 bits": {"dim_feedforward": 2**70},
    "many heads": {"num_heads": 10**9},
    "other heads": {"num_heads": 3},
    "heads of another type": {"num_heads": 2.0},
    "heads below 0": {"num_heads": -2},
    "heads of NaN": '{"num_heads": NaN}',
    "heads of none": {"num_heads": None},
    "many classes": {"num_classes": 10**9},
    "boolean classes": {"num_classes": True},
    "huge images": {"image_size": 10**9},
    "images of no size": {"image_size": 0},
    "a huge longer side": {"max_image_size": 10**9},
    "images of text": {"image_size": "64"},
    "dropout as text": {"dropout": "0"},
    "dropout of NaN": '{"dropout": NaN}',
    "dropout as a list": {"dropout": [0.1]},
    "dropout of 1": {"dropout": 1},
    "backbone of another size": {"backbone": "resnet50"},
    "backbone as a list": {"backbone": ["resnet50"]},
    "backbone as a mapping": {"backbone": {"class": "os.system"}},
    "backbone unknown": {"backbone": "os.system"},
    "no backbone": {"backbone": None},
    "encoding as a list": {"position_encoding": ["sine"]},
    "learned encoding": {"position_encoding": "learned"},
    "pre_norm of another network": {"pre_norm": True},
    "pre_norm as text": {"pre_norm": "false"},
    "norm_between_layers as text": {"norm_between_layers": "false"},
    "categories as text": {"categories": "cat"},
    "categories as a number": {"categories": 3},
    "categories as a mapping": {"categories": {"0": "cat"}},
    "categories of numbers": {"categories": [1, 2]},
    "categories without names": {"categories": [{"id": 1}]},
    "category of an infinite id": '{"categories": [{"id": Infinity, "name": "cat"}]}',
    "category of a list as name": {"categories": [{"id": 1, "name": []}]},
    "too many categories": {"categories": [{"id": 1, "name": "cat"}] * 50},
    "unknown keys": {"trust_remote_code": True, "auto_map": {"AutoModel": "evil.Model"}},
    "model_type as a list": {"model_type": ["detr"]},
    "transformers' without weights of it": {"model_type": "detr", "d_model": 10**9},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_malformed_configuration_is_refused(name, saved):
    file, content = saved / "config.json", CONFIGS[name]
    if isinstance(content, dict):
        content = json.dumps(json.loads(file.read_text()) | content)
    elif not isinstance(content, str | bytes):
        content = json.dumps(content)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError):
        DETR.from_pretrained(saved)


def test_a_configuration_that_is_no_file_is_refused(saved):
    (saved / "config.json").unlink()
    (saved / "config.json").mkdir()
    with pytest.raises(CheckpointError):
        DETR.from_pretrained(saved)


HUGGINGFACE: dict[str, Any] = {
    "heads as text": {"encoder_attention_heads": "8"},
    "other heads in the decoder": {"encoder_attention_heads": 2, "decoder_attention_heads": 4},
    "queries beyond the weights": {"num_queries": 10**9},
    "width beyond the weights": {"d_model": 10**9},
    "dropout as a mapping": {"dropout": {}},
    "auxiliary_loss as text": {"auxiliary_loss": "false"},
    "labels as a list": {"id2label": ["cat"]},
    "labels of no numbers": {"id2label": {"cat": "cat"}},
    "labels as mappings": {"id2label": {str(n): {} for n in range(3)}},
    "too few labels": {"id2label": {"0": "cat"}},
    "backbone as a number": {"backbone_config": 3},
    "dilated basic blocks": {"dilation": True},
    "another activation": {"activation_function": "hard_swish"},
}


@pytest.mark.parametrize("name", HUGGINGFACE)
def test_a_malformed_configuration_of_transformers_is_refused(name, tmp_path, small_detr):
    model = small_detr(backbone="resnet18")
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "detr", "encoder_attention_heads": 2}))
    assert torch.equal(DETR.from_pretrained(tmp_path).query_embed.weight, model.query_embed.weight)
    content = {"model_type": "detr", "encoder_attention_heads": 2} | HUGGINGFACE[name]
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError):
        DETR.from_pretrained(tmp_path)


def _header(content: Any, length: int | None = None) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


SAFETENSORS = {
    "empty": b"",
    "a header longer than the file": _header({}, 2**62),
    "a header of 100 MB and more": _header({}, 10**8 + 1),
    "a header that is no JSON": _header(b"{{{{"),
    "a header nested too deeply": _header(DEEP.encode()),
    "no tensors": _header({}),
    "a tensor beyond the file": _header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
    "a shape that overflows": _header({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}),
    "a dtype that does not exist": _header({"a": {"dtype": "F3", "shape": [1], "data_offsets": [0, 4]}}) + bytes(4),
    "offsets that overlap": _header({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"})
    + bytes(4),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_a_malformed_safetensors_file_is_refused(name, saved):
    (saved / "model.safetensors").write_bytes(SAFETENSORS[name])
    with pytest.raises(CheckpointError):
        DETR.from_pretrained(saved)


def _replaced(weights, name, tensor):
    return {**weights, name: tensor}


WEIGHTS = {
    "a scalar": lambda w: _replaced(w, "query_embed.weight", torch.tensor(1.0)),
    "three axes": lambda w: _replaced(w, "query_embed.weight", torch.zeros(5, 16, 1)),
    "no rows": lambda w: _replaced(w, "query_embed.weight", torch.zeros(0, 16)),
    "no classes": lambda w: _replaced(w, "class_embed.bias", torch.zeros(0)),
    "a scalar bias": lambda w: _replaced(w, "class_embed.bias", torch.tensor(0.0)),
    "integers": lambda w: {name: tensor.long() for name, tensor in w.items()},
    "8-bit numbers": lambda w: _replaced(w, "input_proj.weight", w["input_proj.weight"].to(torch.float8_e4m3fn)),
    "complex numbers": lambda w: _replaced(w, "input_proj.weight", w["input_proj.weight"].cfloat()),
    "a layer too many": lambda w: _replaced(w, "transformer.decoder.layers.999999.linear1.bias", torch.zeros(1)),
    "a layer of a huge number": lambda w: _replaced(w, f"transformer.decoder.layers.{'9' * 5000}.x", torch.zeros(1)),
    "another network": lambda w: {"fc.weight": torch.zeros(2, 2)},
    "an escape sequence": lambda w: _replaced(w, "\x1b[2J", torch.zeros(1)),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_other_weights_are_refused(name, file, saved, small_detr):
    weights = WEIGHTS[name](small_detr().state_dict())
    (saved / "model.safetensors").unlink()
    if file.endswith("bin"):
        torch.save(weights, saved / file)
    else:
        save_file(weights, saved / file)
    with pytest.raises(CheckpointError) as caught:
        DETR.from_pretrained(saved)
    assert "\x1b" not in str(caught.value)


def test_weights_larger_than_their_file_are_refused(saved, small_detr):
    weights = small_detr().state_dict()
    (saved / "model.safetensors").unlink()
    expanded = {name: torch.zeros(1).expand(tensor.shape) for name, tensor in weights.items()}
    shared = torch.zeros(max(tensor.numel() for tensor in weights.values()))
    views = {name: shared[: tensor.numel()].view(tensor.shape) for name, tensor in weights.items()}
    for content, message in ((expanded, "larger than their data"), (views, "share memory")):
        torch.save(content, saved / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=message):
            DETR.from_pretrained(saved)


def test_the_hub(tmp_path, small_detr):
    """A repository in the cache of huggingface_hub, which is read without a network."""
    model = small_detr()
    repository = tmp_path / "models--someone--small-detr"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    model.save_pretrained(snapshot)

    def load() -> DETR:
        return DETR.from_pretrained("someone/small-detr", cache_dir=tmp_path, local_files_only=True)

    assert torch.equal(load().query_embed.weight, model.query_embed.weight)
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors and no pytorch_model\.bin"):
        load()
    torch.save(model.state_dict(), snapshot / "pytorch_model.bin")
    assert torch.equal(load().query_embed.weight, model.query_embed.weight)
    (snapshot / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no repository of that name"):
        load()

from __future__ import annotations

import argparse
import inspect
import json
import logging
import os
import pickle
import stat
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file

from detr_fast import DETR, detr_resnet18
from detr_fast.checkpoints.state_dict import save_state_dict
from detr_fast.models import (
    CheckpointError,
    build_backbone,
    convert_checkpoint,
    load_backbone_weights,
    load_weights,
    read_state_dict,
)

CATEGORIES = [{"id": 17, "name": "cat"}, {"id": 90, "name": "dög"}, {"id": 3, "name": "car"}]


def assert_same_weights(model, weights, but=()):
    own = model.state_dict()
    assert own.keys() == weights.keys()
    for name in own.keys() - set(but):
        assert torch.equal(own[name], weights[name]), name


@pytest.fixture
def state_dict():
    return {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3)}


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin"])
@pytest.mark.parametrize("legacy", [False, True])
def test_reads_what_torch_saves(tmp_path, state_dict, suffix, legacy):
    path = tmp_path / f"weights.{suffix}"
    wrapped = {"model": state_dict, "args": argparse.Namespace(lr=1e-4), "epoch": 3, "optimizer": {"state": {}}}
    for content in (state_dict, wrapped, {"state_dict": {f"module.{k}": v for k, v in state_dict.items()}}):
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        found = read_state_dict(path)
        assert found.keys() == state_dict.keys()
        assert all(torch.equal(found[name], state_dict[name]) for name in found)


@pytest.mark.parametrize("legacy", [False, True])
def test_reads_what_mmengine_saves(tmp_path, state_dict, legacy, monkeypatch):
    """Beside the weights it has histories: objects with arrays, scalars of NumPy and functions of a class."""
    module = ModuleType("mmengine.logging.history_buffer")
    exec("class HistoryBuffer:\n    def __init__(self, **state):\n        self.__dict__ = state", vars(module))
    module.HistoryBuffer.mean = classmethod(lambda cls: 0)
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    history = module.HistoryBuffer(_log_history=np.ones(3), statistics={"mean": module.HistoryBuffer.mean})
    content = {"state_dict": state_dict, "message_hub": {"log_scalars": {"loss": history}, "lr": np.float64(1e-4)}}
    torch.save(content, tmp_path / "epoch_12.pth", _use_new_zipfile_serialization=not legacy)
    monkeypatch.delitem(sys.modules, module.__name__)
    found = read_state_dict(tmp_path / "epoch_12.pth")
    assert found.keys() == state_dict.keys()
    assert all(torch.equal(found[name], state_dict[name]) for name in found)


def test_objects_in_place_of_weights_are_refused(tmp_path, state_dict):
    torch.save({"state_dict": state_dict | {"c.weight": np.ones(3)}}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="contains no state dict"):
        read_state_dict(tmp_path / "weights.pth")


def test_reads_safetensors(tmp_path, state_dict):
    save_file(state_dict, tmp_path / "weights.safetensors")
    found = read_state_dict(str(tmp_path / "weights.safetensors"))
    assert all(torch.equal(found[name], state_dict[name]) for name in state_dict)


class Payload:
    """Unpickling this would create a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_file_that_needs_pickle_is_refused_and_not_run(tmp_path):
    torch.save({"model": Payload(tmp_path / "executed")}, tmp_path / "evil.pth")
    with pytest.raises(
        CheckpointError, match=r"evil\.pth: contains Python objects \(\w+\.mkdir\) that only pickle can restore"
    ):
        read_state_dict(tmp_path / "evil.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Payload(tmp_path / "executed"), protocol=2))
    with pytest.raises(CheckpointError):
        read_state_dict(tmp_path / "bare.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", ["pth", "legacy.pth", "safetensors"])
@pytest.mark.parametrize("part", [0, 0.02, 0.5, 0.95])
def test_a_file_cut_short_is_named(tmp_path, kind, part):
    path, weights = tmp_path / f"weights.{kind}", {"weight": torch.randn(100, 100)}
    if kind == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "pth")
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(CheckpointError, match=rf"weights\.{kind}: cut short or damaged"):
        read_state_dict(path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_of_something_else_is_named(tmp_path, suffix):
    path = tmp_path / f"page.{suffix}"
    path.write_text("<!DOCTYPE html><title>Not found</title>" * 20)
    with pytest.raises(CheckpointError, match="cut short or damaged, or no"):
        read_state_dict(path)
    with pytest.raises(CheckpointError, match="there is no such file"):
        read_state_dict(tmp_path / f"nowhere.{suffix}")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"epoch": 3, "lr": 0.1}, "a mapping with the keys epoch, lr"),
        ({"model": {}}, "a mapping with the keys $"),
        ([torch.zeros(2)], "list"),
    ],
)
def test_a_file_without_a_state_dict_names_its_content(tmp_path, content, found):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=f"contains no state dict.*but {found}"):
        read_state_dict(tmp_path / "weights.pth")


def test_loads_strictly_and_names_every_fault(small_detr):
    model = small_detr()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = {name: torch.randn_like(tensor) for name, tensor in before.items()}
    weights["head.weight"] = weights.pop("bbox_embed.layers.2.weight")
    weights["query_embed.weight"] = torch.zeros(7, 8)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, weights)
    assert "1 missing from the checkpoint: bbox_embed.layers.2.weight" in str(caught.value)
    assert "1 unknown to the model: head.weight" in str(caught.value)
    assert "1 of another shape: query_embed.weight is [7, 8], the model's [5, 16]" in str(caught.value)
    assert_same_weights(model, before)


def test_a_long_list_of_faults_is_cut_and_counted(small_detr):
    model = small_detr()
    with pytest.raises(CheckpointError, match=rf"{len(model.state_dict())} missing .*, and \d+ more") as caught:
        load_weights(model, {"x": torch.zeros(1)})
    assert len(str(caught.value)) < 1000


def test_a_class_head_of_another_size_stays_new_and_says_so(small_detr, caplog):
    trained, model = small_detr(num_classes=7), small_detr(num_classes=3)
    weights = {name: torch.randn_like(tensor) for name, tensor in trained.state_dict().items()}
    head = {name: t.clone() for name, t in model.state_dict().items() if name.startswith("class_embed")}
    load_weights(model, weights)
    assert "class head is for 7 classes, the model's for 3" in caplog.text
    assert_same_weights(model, weights | head)


def test_other_widths_of_the_class_head_are_faults(small_detr):
    weights = small_detr().state_dict() | {"class_embed.weight": torch.zeros(8, 17), "class_embed.bias": torch.zeros(8)}
    with pytest.raises(CheckpointError, match=r"2 of another shape: class_embed\.weight"):
        load_weights(small_detr(), weights)


def test_loads_torchvisions_backbones(tmp_path):
    torchvision = build_backbone("resnet18").state_dict()
    torchvision |= {
        name.replace("var", "mean"): torch.zeros_like(t) for name, t in torchvision.items() if "var" in name
    }
    torchvision["bn1.num_batches_tracked"] = torch.tensor(7)
    torch.save(torchvision | {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}, tmp_path / "r18.pth")
    model = detr_resnet18(num_encoder_layers=0, num_decoder_layers=1)
    load_backbone_weights(model, tmp_path / "r18.pth")
    del torchvision["bn1.num_batches_tracked"]
    assert_same_weights(model.body, torchvision)

    torch.save(build_backbone("resnet34").state_dict(), tmp_path / "r34.pth")
    with pytest.raises(CheckpointError, match=r"unknown to the model: layer1\.2\.conv1\.weight"):
        load_backbone_weights(model, tmp_path / "r34.pth")


def test_saved_and_loaded_again_it_is_the_same(tmp_path, small_detr):
    model = small_detr(categories=CATEGORIES, pre_norm=True, position_encoding="learned", max_image_size=None)
    model.save_pretrained(tmp_path)
    loaded = DETR.from_pretrained(tmp_path)
    assert_same_weights(loaded, model.state_dict())
    assert not loaded.training
    assert loaded.categories == CATEGORIES
    assert (loaded.image_size, loaded.max_image_size, loaded.num_classes) == (48, None, 3)
    images = torch.randn(1, 3, 40, 40)
    assert torch.equal(loaded(images).logits, model.eval()(images).logits)
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text()) == json.loads(
        (tmp_path / "config.json").read_text()
    )


def test_options_that_weights_do_not_determine_are_saved(tmp_path, small_detr):
    options = {
        "activation": "gelu",
        "box_activation": "silu",
        "position_temperature": 20,
        "position_normalize": False,
        "position_scale": 1.0,
        "position_eps": 0.5,
        "position_offset": -0.5,
        "num_ffn_layers": 3,
        "num_box_layers": 2,
    }
    model = small_detr(**options).eval()
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert {name: saved[name] for name in options} == options
    images = torch.randn(1, 3, 40, 40)
    assert torch.equal(DETR.from_pretrained(tmp_path)(images).boxes, model(images).boxes)
    for name, value in options.items():
        default = inspect.signature(DETR).parameters[name].default
        with pytest.raises(CheckpointError, match=f"{name}={value!r}, but (the arguments say )?{default!r}"):
            DETR.from_pretrained(tmp_path, **{name: default})
    named = {"backbone": "resnet_tiny", "num_heads": 2}
    from_file = DETR.from_pretrained(tmp_path / "model.safetensors", **named, **options)
    assert torch.equal(from_file(images).boxes, model(images).boxes)
    with pytest.raises(CheckpointError, match="a DETR with num_ffn_layers=3, but the arguments say 2"):
        DETR.from_pretrained(tmp_path / "model.safetensors", **named, num_ffn_layers=2)


def test_missing_layers_of_the_box_head_are_named(tmp_path, small_detr):
    weights = dict(small_detr().state_dict())
    del weights["bbox_embed.layers.1.bias"], weights["bbox_embed.layers.1.weight"]
    torch.save(weights, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"2 missing from the checkpoint: bbox_embed\.layers\.1\.weight"):
        DETR.from_pretrained(tmp_path / "model.pth", backbone="resnet_tiny", num_heads=2)


def test_onto_another_number_of_classes(tmp_path, small_detr, caplog):
    model = small_detr(categories=CATEGORIES)
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        loaded = DETR.from_pretrained(tmp_path, num_classes=8)
    assert "class head is for 3 classes, the model's for 8" in caplog.text
    assert loaded.categories is None  # they are the names of the old classes
    head = {name: t for name, t in loaded.state_dict().items() if name.startswith("class_embed")}
    assert head["class_embed.bias"].shape == (9,)
    assert_same_weights(loaded, model.state_dict() | head)
    named = DETR.from_pretrained(tmp_path, num_classes=2, categories=CATEGORIES[:2])
    assert named.categories == CATEGORIES[:2]


def test_a_custom_backbone_has_to_be_passed_again(tmp_path, tiny_detr, tiny_backbone):
    model = tiny_detr()
    model.save_pretrained(tmp_path)
    assert_same_weights(DETR.from_pretrained(tmp_path, backbone=tiny_backbone()), model.state_dict())
    with pytest.raises(ValueError, match="saved with a custom backbone; pass that module as backbone="):
        DETR.from_pretrained(tmp_path)


def test_a_damaged_directory_is_named(tmp_path, small_detr):
    small_detr().save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cut short or damaged"):
        DETR.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: there is no such file"):
        DETR.from_pretrained(tmp_path)
    small_detr().save_pretrained(tmp_path)
    config.write_text('{"num_classes": 3, "num_la')
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read or is damaged"):
        DETR.from_pretrained(tmp_path)
    config.write_text('{"num_classes": 3, "num_labels": 3}')
    with pytest.raises(CheckpointError, match=r"unknown keys num_labels"):
        DETR.from_pretrained(tmp_path)
    config.unlink()
    with pytest.raises(CheckpointError, match=r"there is no config\.json"):
        DETR.from_pretrained(tmp_path)


def test_factories_take_weights_from_files_and_directories(tmp_path, caplog):
    shape = {"hidden_dim": 16, "num_encoder_layers": 0, "num_decoder_layers": 1, "num_queries": 3}
    model = detr_resnet18(4, **shape, image_size=64)
    assert model.training
    torch.save({"model": model.state_dict(), "args": argparse.Namespace(batch_size=2)}, tmp_path / "original.pth")
    model.save_pretrained(tmp_path / "saved")

    from_file = detr_resnet18(weights=tmp_path / "original.pth", **shape)
    from_directory = detr_resnet18(weights=str(tmp_path / "saved"))
    for loaded in (from_file, from_directory):
        assert loaded.num_classes == 4
        assert not loaded.training
        assert_same_weights(loaded, model.state_dict())
    assert from_directory.image_size == 64
    assert not caplog.records

    assert detr_resnet18(2, weights=tmp_path / "original.pth", **shape).num_classes == 2
    assert detr_resnet18(2, weights=tmp_path / "saved").num_classes == 2
    assert [r.args for r in caplog.records] == [(4, 2)] * 2


def test_factories_name_what_is_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="user/typo: there is no such file or directory, and no repository"):
        detr_resnet18(weights="user/typo")
    torch.save(build_backbone("resnet18").state_dict(), tmp_path / "backbone.pth")
    with pytest.raises(CheckpointError, match="no class head"):
        detr_resnet18(weights=tmp_path / "backbone.pth")


def test_a_checksum_is_written_and_files_without_one_are_read(tmp_path, state_dict):
    from safetensors import safe_open

    state_dict |= {"scalar": torch.tensor(3.0), "half": torch.randn(3).half(), "flags": torch.tensor([True, False])}
    save_state_dict(state_dict, tmp_path / "with.safetensors")
    with safe_open(tmp_path / "with.safetensors", framework="pt") as file:
        assert file.metadata().keys() == {"format", "sha256"}
    save_file(state_dict, tmp_path / "without.safetensors")
    for name in ("with", "without"):
        found = read_state_dict(tmp_path / f"{name}.safetensors")
        assert all(torch.equal(found[key], value) for key, value in state_dict.items())


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_saved_weights_have_the_permissions_that_the_umask_leaves(tmp_path, umask, small_detr):
    before = os.umask(umask)
    try:
        small_detr().save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    for file in (tmp_path / "model").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask, file.name
    weights = tmp_path / "model/model.safetensors"
    weights.chmod(0o640)
    save_state_dict({"a": torch.zeros(1)}, weights)
    assert stat.S_IMODE(weights.stat().st_mode) == 0o640


def test_the_model_card_leaves_the_license_to_the_owner(tmp_path, small_detr):
    small_detr().save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license is None
    assert (card.data.library_name, card.data.pipeline_tag) == ("detr_fast", "object-detection")
    assert {"## Training data", "## Evaluation", "## License"} <= set(card.text.splitlines())
    assert "More Information Needed" not in card.text


@pytest.mark.parametrize("num_queries", [2, 5, 9])
def test_another_number_of_queries_takes_over_what_fits(small_detr, tmp_path, num_queries, caplog):
    model = small_detr()
    model.save_pretrained(tmp_path)
    loaded = DETR.from_pretrained(tmp_path, num_queries=num_queries)
    assert_same_weights(loaded, model.state_dict(), but=["query_embed.weight"])
    common = min(num_queries, 5)
    assert torch.equal(loaded.query_embed.weight[:common], model.query_embed.weight[:common])
    assert (loaded.query_embed.weight[common:].abs() > 1e-3).float().mean() > 0.9 or num_queries <= 5  # are random
    assert loaded.query_embed.num_embeddings == num_queries
    expected = {
        2: ["the checkpoint has 5 queries, the model 2: loaded the first 2; dropped the others"],
        5: [],
        9: ["the checkpoint has 5 queries, the model 9: loaded the first 5; the others have to be trained"],
    }
    assert [record.getMessage() for record in caplog.records] == expected[num_queries]
    loaded.save_pretrained(tmp_path / "again")
    assert_same_weights(DETR.from_pretrained(tmp_path / "again"), loaded.state_dict())


def test_queries_of_another_width_are_refused(small_detr, tmp_path):
    weights = small_detr().state_dict() | {"query_embed.weight": torch.zeros(9, 8)}
    with pytest.raises(CheckpointError, match=r"query_embed\.weight is \[9, 8\]"):
        load_weights(small_detr(), weights)
    with pytest.raises(CheckpointError, match=r"of another dtype: query_embed\.weight is torch\.int64"):
        load_weights(small_detr(), weights | {"query_embed.weight": torch.zeros(5, 16, dtype=torch.int64)})


def test_the_detector_of_a_panoptic_checkpoint_is_loaded(small_detr, tmp_path, caplog):
    """With the names of facebookresearch/detr."""
    model = small_detr(backbone="resnet18")
    mask_head = {"bbox_attention.q_linear.weight": torch.zeros(2, 2), "mask_head.lay1.weight": torch.zeros(2, 2, 3, 3)}
    weights = {f"detr.{name}": tensor for name, tensor in model.state_dict().items()} | mask_head
    torch.save({"model": weights}, tmp_path / "panoptic.pth")
    loaded = DETR.from_pretrained(tmp_path / "panoptic.pth", num_heads=2)
    assert_same_weights(loaded, model.state_dict())
    assert "loaded its detector, and left out the 2 tensors of its mask head" in caplog.text
    message = convert_checkpoint(tmp_path / "panoptic.pth", tmp_path / "detector.safetensors", "original")
    assert "(original)" in message
    assert read_state_dict(tmp_path / "detector.safetensors").keys() == model.state_dict().keys()
    torch.save({"model": weights | {"another.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="the checkpoint is not a DETR"):
        DETR.from_pretrained(tmp_path / "other.pth", num_heads=2)

"""Exported files compute what the model does, in ONNX Runtime and in torch.export, at sizes that were not traced."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn

from detr_fast import DETR, cli
from detr_fast.images import pad_images
from detr_fast.models import ExportError, export_model
from detr_fast.models import export as export_module

pytestmark = pytest.mark.slow

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 9, "name": "Straße"}, {"id": 12, "name": "猫"}]
SIZES = [[(64, 64)], [(200, 131), (90, 260)], [(70, 70), (33, 90), (64, 48), (32, 32)]]


def build(small_detr, position_encoding: str, backbone: str = "resnet_tiny", pre_norm: bool = False) -> DETR:
    torch.manual_seed(0)
    options = {"position_encoding": position_encoding, "backbone": backbone, "pre_norm": pre_norm}
    model = small_detr(categories=CATEGORIES, image_size=480, max_image_size=640, **options)
    for parameter in (model.query_embed.weight, model.class_embed.weight):
        nn.init.normal_(parameter)
    return model.train()  # the export is one of evaluation, without dropout


def batches():
    for sizes in SIZES:
        yield pad_images([torch.randn(3, *size, generator=torch.Generator().manual_seed(1)) for size in sizes])


def expect_same(run, model):
    model.eval()
    for images, mask in batches():
        mask = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool) if mask is None else mask
        with torch.no_grad():
            expected = model(images, mask)
        logits, boxes = run(images, mask)
        torch.testing.assert_close(torch.as_tensor(logits), expected.pred_logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(torch.as_tensor(boxes), expected.pred_boxes, rtol=0, atol=1e-5)
    model.train()


@pytest.mark.parametrize(
    ("position_encoding", "backbone", "pre_norm"),
    [("sine", "resnet18", False), ("learned", "resnet_tiny", False), ("sine", "resnet_tiny", True)],
)
def test_onnx(small_detr, position_encoding, backbone, pre_norm, tmp_path):
    model = build(small_detr, position_encoding, backbone, pre_norm)
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "deep/model.onnx"
    assert export_model(model, path) < 1e-5
    assert model.training
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    shapes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
    axes = ["batch", "height", "width"]
    assert shapes["images"] == ["batch", 3, *axes[1:]]
    assert shapes["mask"] == axes
    queries = model.query_embed.num_embeddings
    assert shapes["logits"] == ["batch", queries, 4]
    assert shapes["boxes"] == ["batch", queries, 4]
    expect_same(lambda images, mask: session.run(None, {"images": images.numpy(), "mask": mask.numpy()}), model)
    properties = session.get_modelmeta().custom_metadata_map
    found = {name: json.loads(properties[name]) for name in ("mean", "image_size", "max_image_size", "categories")}
    assert found == {
        "mean": [0.485, 0.456, 0.406],
        "image_size": 480,
        "max_image_size": 640,
        "categories": CATEGORIES,
    }


@pytest.mark.parametrize("pre_norm", [False, True])
def test_torch_export_by_the_command_line(small_detr, pre_norm, tmp_path, capsys):
    model = build(small_detr, "sine", pre_norm=pre_norm)
    model.save_pretrained(tmp_path / "run/model")
    path = tmp_path / "model.pt2"
    with pytest.raises(SystemExit) as stopped:
        cli.main(["export", "--model", str(tmp_path / "run"), "--output", str(path)])
    assert not stopped.value.code
    assert f"{path}: its outputs differ from those of the model by at most " in capsys.readouterr().out
    files = {export_module.METADATA: ""}
    program = torch.export.load(path, extra_files=files)
    expect_same(program.module(), model)
    assert json.loads(files[export_module.METADATA])["categories"] == CATEGORIES


def test_a_file_that_differs_is_not_written(small_detr, tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    path.write_text("of before")
    monkeypatch.setattr(export_module, "TOLERANCE", -1.0)
    with pytest.raises(ExportError, match="the outputs differ from those of the model"):
        export_model(small_detr(), path)
    assert path.read_text() == "of before"
    assert list(tmp_path.iterdir()) == [path]


def test_another_suffix_is_refused(small_detr, tmp_path):
    small_detr().save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["export", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "model.engine")])
    assert "model.engine: the suffix must be .onnx or .pt2" in stopped.value.code


def test_the_extra_is_named(small_detr, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'detr_fast\[export\]'"):
        export_model(small_detr(), tmp_path / "model.onnx")

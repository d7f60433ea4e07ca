from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from detr_fast import DETR, SetCriterion, Targets
from detr_fast.checkpoints.state_dict import CheckpointError
from detr_fast.data import Batch, CocoDetection, Resize, check_dataset, collate, make_shapes
from detr_fast.models import postprocess
from detr_fast.training import TrainingError, coco_metrics, evaluation
from detr_fast.training.coco import METRICS, CocoEvaluation
from detr_fast.training.evaluation import detect, evaluate
from detr_fast.training.loading import build_eval_data
from detr_fast.training.ranks import build_accelerator


def _random_data(seed: int) -> tuple[dict[str, Any], np.ndarray]:
    """A random data set and detections of it: crowds, stated areas, all sizes, ties, more than 100 detections."""
    rng = np.random.default_rng(seed)
    images = [{"id": int(i)} for i in rng.choice(1000, 12, replace=False)]
    categories = [{"id": int(i), "name": f"name {i}"} for i in rng.choice(90, 5, replace=False) + 1]
    annotations: list[dict[str, Any]] = []
    rows = []
    for image in images:
        for _ in range(rng.integers(0, 12)):
            box = [*rng.uniform(0, 300, 2), *10 ** rng.uniform(0.5, 2.5, 2)]
            category = int(rng.choice(categories)["id"])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": [float(x) for x in box],
                    "area": float(box[2] * box[3] * rng.choice([0.5, 1.0])),
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
            for _ in range(rng.integers(0, 3)):
                near = np.array(box) * rng.uniform(0.8, 1.2, 4)
                label = category if rng.random() < 0.8 else int(rng.choice(categories)["id"])
                rows.append([image["id"], *near, rng.integers(1, 20) / 20, label])
        for _ in range(120 if rng.random() < 0.2 else 5):
            wrong = [*rng.uniform(0, 300, 2), *rng.uniform(5, 200, 2)]
            rows.append([image["id"], *wrong, rng.integers(1, 20) / 20, rng.choice(categories)["id"]])
    return {"images": images, "annotations": annotations, "categories": categories}, np.array(rows, dtype=np.float64)


def _evaluated(truth: dict[str, Any], detections: np.ndarray) -> COCOeval:
    """The evaluation of pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _pycocotools(truth: dict[str, Any], detections: np.ndarray) -> tuple[list[float], dict[str, float]]:
    evaluation = _evaluated(truth, detections)
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    names = {category["id"]: category["name"] for category in truth["categories"]}
    classes = {}
    for k, category in enumerate(evaluation.params.catIds):
        values = precision[:, :, k][precision[:, :, k] > -1]
        classes[names[category]] = float(values.mean()) if values.size else -1.0
    return evaluation.stats.tolist(), classes


@pytest.mark.parametrize("seed", range(8))
def test_the_metrics_are_those_of_pycocotools(seed):
    truth, detections = _random_data(seed)
    stats, classes = _pycocotools(truth, detections)
    metrics = coco_metrics(truth, detections)
    assert [metrics[name] for name in METRICS] == pytest.approx(stats, abs=1e-12)
    assert metrics["classes"] == pytest.approx(classes, abs=1e-12)
    assert 0 < metrics["AP"] < 1


@pytest.mark.parametrize("seed", [0, 2, 3, 4, 5, 7])  # with the others crowds are not detected
def test_the_confusion_matrix_leaves_out_what_pycocotools_ignores(seed):
    truth, detections = _random_data(seed)
    counts = Counter(detections[:, 0])
    detections = detections[[counts[image] <= 100 for image in detections[:, 0]]]  # the evaluator takes no more
    threshold = 0.3
    ignored = 0
    for entry in filter(None, _evaluated(truth, detections).evalImgs):
        if entry["aRng"] == [0, 1e10]:
            scores = np.array(entry["dtScores"])
            ignored += int(((entry["dtIgnore"][0] == 1) & (scores >= threshold)).sum())
    images, categories = ([entry["id"] for entry in truth[part]] for part in ("images", "categories"))
    indexed = detections.copy()
    indexed[:, 0] = [images.index(image) for image in detections[:, 0]]
    indexed[:, 6] = [categories.index(category) for category in detections[:, 6]]
    matrix = CocoEvaluation(truth, indexed).confusion_matrix(threshold=threshold)
    assert ignored
    assert matrix[:, :-1].sum() == (detections[:, 5] >= threshold).sum() - ignored
    assert matrix[:-1].sum() == sum(not annotation["iscrowd"] for annotation in truth["annotations"])


def test_the_confusion_matrix_leaves_out_any_number_of_detections_of_a_crowd():
    entry = {"image_id": 1, "category_id": 1, "area": 100}
    truth = {
        "images": [{"id": 1}],
        "annotations": [
            {"id": 1, **entry, "bbox": [0, 0, 100, 100], "iscrowd": 1},
            {"id": 2, **entry, "bbox": [200, 0, 10, 10], "iscrowd": 0},
        ],
        "categories": [{"id": 1, "name": "person"}],
    }
    detections = np.array([[0, k % 50, 10, 20, 20, 0.9, 0] for k in range(150)], dtype=np.float64)
    assert CocoEvaluation(truth, detections).confusion_matrix(threshold=0.5).tolist() == [[0, 1], [0, 0]]


def _renumber(truth, images=lambda n: n, annotations=lambda n: n, categories=lambda n: n):
    return {
        "images": [{**image, "id": images(image["id"])} for image in truth["images"]],
        "annotations": [
            {
                **annotation,
                "id": annotations(annotation["id"]),
                "image_id": images(annotation["image_id"]),
                "category_id": categories(annotation["category_id"]),
            }
            for annotation in truth["annotations"]
        ],
        "categories": [{**category, "id": categories(category["id"])} for category in truth["categories"]],
    }


@pytest.mark.parametrize("first", [0, -1, -100])
def test_annotation_ids_of_0_and_below_change_nothing(first):
    truth, detections = _random_data(0)
    renumbered = _renumber(truth, annotations=lambda n: n - 1 + first)
    assert coco_metrics(renumbered, detections) == coco_metrics(truth, detections)


def test_three_perfect_detections_score_one_from_any_first_id():
    for first in (1, 0, -1):
        annotations = [
            {"id": first + k, "image_id": 1, "category_id": 1, "bbox": [40.0 * k, 0, 30, 30], "area": 900, "iscrowd": 0}
            for k in range(3)
        ]
        truth = {"images": [{"id": 1}], "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
        detections = np.array([[1, *entry["bbox"], 0.9, 1] for entry in annotations])
        assert coco_metrics(truth, detections)["AP"] == pytest.approx(1)


def test_two_categories_of_one_name_are_told_apart():
    truth, detections = _random_data(1)
    for category in truth["categories"][:2]:
        category["name"] = "cat"
    names = coco_metrics(truth, detections)["classes"].keys()
    assert len(names) == 5
    assert f"cat ({truth['categories'][0]['id']})" in names


def test_a_detection_of_an_unknown_image_is_refused():
    truth, detections = _random_data(2)
    detections[3, 0] = 12345
    with pytest.raises(ValueError, match="no image 12345"):
        coco_metrics(truth, detections)


@pytest.mark.parametrize("offset", [-7, 2**53 - 15, 2**62])
def test_ids_of_any_size_are_evaluated_and_reported(folder_of_three, offset):
    """Ids beyond 2^53, of which neighbours are equal as float64, and ids below 0."""
    folder = folder_of_three
    rows = np.array([[0, 4, 6, 10, 12, 0.9, 1], [0, 0, 0, 40, 30, 0.8, 0], [1, 20, 10, 8, 8, 0.7, 2]], dtype=float)
    expected = CocoEvaluation.of_dataset(CocoDetection(folder.images, folder.file, Resize(30)), rows).metrics
    assert expected["AP"] == pytest.approx(1)
    folder.content = _renumber(folder.content, *[lambda n: n + offset] * 3)
    folder.write()
    shifted = CocoDetection(folder.images, folder.file, Resize(30))
    assert CocoEvaluation.of_dataset(shifted, rows).metrics == expected
    messages = [str(fault) for fault in check_dataset(folder.images, folder.file)]
    assert messages
    assert all("id that other tools misread" in message for message in messages)


@torch.no_grad()
def test_the_validation_loss_is_that_of_the_criterion(tmp_path, small_detr):
    """The mean over images, each batch being weighted by its size."""
    shapes = make_shapes(tmp_path / "shapes", 1, 5, image_size=32)
    accelerator = build_accelerator(mixed_precision="no", device="cpu")
    dataset, loader = build_eval_data(
        shapes / "val",
        shapes / "annotations/instances_val.json",
        accelerator,
        transform=Resize(32),
        categories=None,
        batch_size=2,
        num_workers=0,
        orientation="upright",
    )
    model, criterion = small_detr(), SetCriterion()
    found = evaluate(model, loader, dataset, accelerator, criterion=criterion)
    assert model.training
    assert criterion.training
    model.eval()
    losses = []
    for packed in loader:
        batch = packed.to("cpu")
        output = model(batch.images, batch.padding)
        losses += [float(criterion(output.logits, output.boxes, batch.targets).total)] * len(batch)
    assert len(losses) == 5
    assert found.metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert found.coco.metrics["AP"] == found.metrics["AP"]
    assert "loss" not in evaluate(model, loader, dataset, accelerator).metrics


def test_outputs_that_are_not_finite_are_an_error(tmp_path, small_detr):
    shapes = make_shapes(tmp_path / "shapes", 1, 2, image_size=32)
    model = small_detr()
    torch.nn.init.constant_(model.class_embed.bias, float("nan"))
    accelerator = build_accelerator(mixed_precision="no", device="cpu")
    dataset = CocoDetection(shapes / "val", shapes / "annotations/instances_val.json", Resize(32))
    with pytest.raises(TrainingError, match="evaluation, images "):
        detect(model, [collate([dataset[0], dataset[1]])], dataset, accelerator, criterion=SetCriterion())


@pytest.fixture
def folder_of_three(tmp_path):
    from tests.data.conftest import CocoFolder

    folder = CocoFolder(tmp_path)
    for entry in folder.content["images"]:
        entry["id"] //= 10  # neighbouring ids
    for entry in folder.content["annotations"]:
        entry["image_id"] //= 10
    folder.write()
    return folder


def _eval_batches(shapes, batch_size: int):
    dataset, loader = build_eval_data(
        shapes / "train",
        shapes / "annotations/instances_train.json",
        Accelerator(cpu=True),
        transform=Resize(48),
        categories=None,
        batch_size=batch_size,
        num_workers=0,
        orientation="upright",
    )
    return dataset, list(loader)


@torch.inference_mode()
def _detect_one_by_one(model, batches, dataset) -> np.ndarray:
    rows = []
    for packed in batches:
        batch = packed.to("cpu")
        output = model(batch.images, batch.padding)
        results = postprocess(output.pred_logits, output.pred_boxes, batch.original_sizes)
        for image_id, result in zip(batch.image_ids, results, strict=True):
            for box, score, label in zip(*(result[key].tolist() for key in ("boxes", "scores", "labels")), strict=True):
                x, y, right, bottom = box
                rows.append([dataset.image_ids.index(image_id), x, y, right - x, bottom - y, score, label])
    return np.array(rows)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_detections_are_those_of_one_image_after_the_other(shapes, small_detr, batch_size):
    dataset, batches = _eval_batches(shapes, batch_size)
    model = small_detr().train()
    found, _ = detect(model, batches, dataset, Accelerator(cpu=True))
    assert model.training
    assert found.dtype == np.float64
    assert np.array_equal(found, _detect_one_by_one(model.eval(), batches, dataset))


def test_batches_without_a_readable_image_have_no_detections(shapes, small_detr):
    dataset, batches = _eval_batches(shapes, 4)
    found, _ = detect(small_detr(), [collate([None]), *batches, collate([])], dataset, Accelerator(cpu=True))
    assert np.array_equal(found, detect(small_detr(), batches, dataset, Accelerator(cpu=True))[0])
    assert detect(small_detr(), [collate([None])], dataset, Accelerator(cpu=True))[0].shape == (0, 7)


class CopyCounter(TorchFunctionMode):
    """Counts the calls with which the host reads a tensor of a device."""

    READS = ("cpu", "item", "tolist", "__bool__", "__float__", "__int__", "__index__")

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        self.calls[name] += name in self.READS
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("batch_size", [1, 3, 12])
def test_an_evaluation_is_read_back_once(shapes, small_detr, batch_size):
    dataset, batches = _eval_batches(shapes, batch_size)
    model = small_detr()
    with CopyCounter() as counter:
        detect(model, batches, dataset, Accelerator(cpu=True))
    assert +counter.calls == {"cpu": 1}


class TransferRecorder(TorchDispatchMode):
    """Records the ops that copy between devices, and those with which the host waits for a number."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.name().split(".")[0]
        source, *_ = [x.device.type for x in args if isinstance(x, torch.Tensor)] or [""]
        if source and isinstance(result, torch.Tensor) and result.device.type != source:
            self.ops.append(f"{source} to {result.device.type}")
        if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select"):
            self.ops.append(name)
        return result


@dataclass(frozen=True)
class OnDevice:
    """A batch that is on the device already."""

    batch: Batch

    def __len__(self) -> int:
        return len(self.batch)

    def to(self, device: torch.device, memory_format: torch.memory_format) -> Batch:
        return self.batch


@dataclass(frozen=True)
class FakeAccelerator:
    """What an evaluation needs of an accelerator, for tensors without values."""

    device: torch.device
    autocast: Any = contextlib.nullcontext


class Stopped(Exception):
    """The detections have reached the host, where those of tensors without values end."""


@pytest.mark.parametrize("is_padded", [False, True])
def test_an_evaluation_with_fake_tensors_copies_once(shapes, small_detr, monkeypatch, is_padded):
    dataset, _ = _eval_batches(shapes, 4)
    shapes_of_rows = []

    def stop(found: torch.Tensor, images: list[int], sizes: list[tuple[int, int]]) -> None:
        shapes_of_rows.append((found.device.type, tuple(found.shape), images, sizes))
        raise Stopped

    monkeypatch.setattr(evaluation, "_rows", stop)
    device = torch.device("meta")
    with FakeTensorMode(), torch.device(device):
        model = small_detr(backbone="resnet18")
        images, mask = torch.empty(2, 3, 48, 64), torch.empty(2, 48, 64, dtype=torch.bool)
        targets = Targets(
            torch.empty(0, dtype=torch.int64), torch.empty(0, 4), [0, 0], torch.empty(3, dtype=torch.int32)
        )
        ids = dataset.image_ids
        batches = [OnDevice(Batch(images, mask, is_padded, targets, ids[i : i + 2], [(32, 32)] * 2)) for i in (0, 2, 4)]
        with TransferRecorder() as recorder, pytest.raises(Stopped):
            detect(model, batches, dataset, FakeAccelerator(device))
    assert recorder.ops == ["meta to cpu"]
    assert shapes_of_rows == [("cpu", (6, 5, 6), [0, 1, 2, 3, 4, 5], [(32, 32)] * 6)]


@pytest.fixture
def save_detector(tmp_path):
    """Save a model that detects its last class everywhere, and return its directory."""

    def save(num_classes: int, categories: list[dict[str, Any]] | None) -> Path:
        sizes = {"hidden_dim": 16, "num_encoder_layers": 1, "num_decoder_layers": 1, "dim_feedforward": 8}
        model = DETR(num_classes, backbone="resnet_tiny", categories=categories, num_queries=3, image_size=64, **sizes)
        with torch.no_grad():
            model.class_embed.weight.zero_()
            model.class_embed.bias.copy_(torch.arange(num_classes + 1.0) % num_classes)
        model.save_pretrained(tmp_path / "saved")
        return tmp_path / "saved"

    return save


def test_detections_of_labels_without_a_category_are_ignored(shapes, save_detector, tmp_path):
    images, annotations = shapes / "val", shapes / "annotations/instances_val.json"
    categories = json.loads(annotations.read_text())["categories"]
    model = save_detector(len(categories) + 2, categories)
    metrics = evaluation.evaluate_model(model, images, annotations, num_workers=0, figures=tmp_path / "figures")
    assert metrics["AP"] == 0
    assert (tmp_path / "figures/confusion_matrix.png").exists()


def test_a_model_without_categories_is_evaluated_with_as_many_classes_as_the_data_have(shapes, save_detector):
    images, annotations = shapes / "val", shapes / "annotations/instances_val.json"
    number = len(json.loads(annotations.read_text())["categories"])
    assert evaluation.evaluate_model(save_detector(number, None), images, annotations, num_workers=0)["AP"] >= 0
    for other in (number - 1, number + 1):
        with pytest.raises(CheckpointError, match=rf"the model's {other} classes are not known, .* has {number} cat"):
            evaluation.evaluate_model(save_detector(other, None), images, annotations, num_workers=0)

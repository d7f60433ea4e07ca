from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detr_fast import SetCriterion
from detr_fast.data import CocoDetection, Resize, check_dataset, collate, make_shapes
from detr_fast.training import TrainingError, coco_metrics
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


def _pycocotools(truth: dict[str, Any], detections: np.ndarray) -> tuple[list[float], dict[str, float]]:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
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

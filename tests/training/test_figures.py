"""The figures of an evaluation, and the numbers that they show."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from detr_fast.data import Augmentation, CocoDetection, Resize, make_shapes
from detr_fast.training import figures
from detr_fast.training.coco import CocoEvaluation


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("figures") / "shapes", 5, 20, image_size=32)


@pytest.fixture
def dataset(shapes):
    return CocoDetection(shapes / "val", shapes / "annotations/instances_val.json", Resize(32))


def _detections(dataset, *, wrong: int = 0):
    """Perfect detections, of which those of the first images are of the class after the right one."""
    rows = []
    for index in range(len(dataset)):
        loaded = dataset.load_image(index)
        for (left, top, right, bottom), label in zip(loaded.boxes.tolist(), loaded.labels.tolist(), strict=True):
            named = (label + 1) % 3 if index < wrong else label
            rows.append([index, left, top, right - left, bottom - top, 0.9, named])
    return np.array(rows)


def _counts(dataset, wrong):
    """The confusion matrix, counted by hand."""
    counts = np.zeros((4, 4), dtype=int)
    for index in range(len(dataset)):
        for label in dataset.load_image(index).labels.tolist():
            counts[label, (label + 1) % 3 if index < wrong else label] += 1
    return counts


def test_the_confusion_matrix_counts_wrong_classes(dataset):
    coco = CocoEvaluation.of_dataset(dataset, _detections(dataset, wrong=8))
    assert coco.confusion_matrix(threshold=0.5).tolist() == _counts(dataset, 8).tolist()
    missed = coco.confusion_matrix(threshold=0.95)
    assert missed[:3, 3].tolist() == _counts(dataset, 0).sum(1)[:3].tolist()
    assert missed[:, :3].sum() == 0


def test_the_worst_images_are_known(dataset):
    coco = CocoEvaluation.of_dataset(dataset, _detections(dataset, wrong=3))
    ap50 = coco.image_ap50()
    worst = {image_id for image_id, value in ap50.items() if value < 0.5}
    with_boxes = [i for i in range(3) if len(dataset.load_image(i).boxes)]
    assert worst == {dataset.image_ids[i] for i in with_boxes}
    assert [v for image_id, v in ap50.items() if image_id not in worst] == pytest.approx(
        [1.0] * (len(ap50) - len(worst))
    )


def test_precision_and_ap_of_the_classes(dataset):
    coco = CocoEvaluation.of_dataset(dataset, _detections(dataset))
    assert coco.precision().shape == (101, 3)
    assert coco.metrics["classes"] == {name: pytest.approx(1) for name in ("triangle", "circle", "rectangle")}
    assert coco.precision().min() == pytest.approx(1)


def test_predictions_begin_with_the_worst_images(dataset, small_detr):
    coco = CocoEvaluation.of_dataset(dataset, _detections(dataset, wrong=2))
    figure = figures.draw_predictions(small_detr(image_size=32, max_image_size=32), dataset, coco, threshold=0.5)
    titles = [axis.get_title() for axis in figure.axes if "ground truth" in axis.get_title()]
    values = [float(title.split("AP50 ")[1].split(":")[0]) for title in titles]
    assert len(values) == 12
    assert values == sorted(values)
    assert values[0] == 0
    assert values[-1] == 1


def test_names_are_drawn_as_they_are(dataset):
    """Dollar signs, control characters and letters for which no font is installed raise nothing and warn of nothing."""
    coco = CocoEvaluation.of_dataset(dataset, _detections(dataset, wrong=2))
    coco.classes[:] = ["$\\frac$", "a\x1b[31m", "猫 ü"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with figures.class_names(coco.classes):
            for figure in (
                figures.plot_precision_recall(coco),
                figures.plot_confusion_matrix(coco, threshold=0.5),
            ):
                figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[0] == "$\\frac$"
    assert labels[1] == r"a\x1b[31m"


def test_a_data_set_without_boxes_is_drawn(dataset, small_detr):
    empty = CocoEvaluation(
        {"images": [{"id": 3}], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}, np.zeros((0, 7))
    )
    assert empty.image_ap50() == {}
    model = small_detr(image_size=32, max_image_size=32)
    for figure in (
        figures.plot_precision_recall(empty),
        figures.plot_confusion_matrix(empty, threshold=0.5),
        figures.draw_predictions(model, dataset, empty, threshold=0.5),
    ):
        assert isinstance(figure, Figure)


def test_training_images_are_what_the_model_receives(shapes):
    """Flipped images have flipped boxes: the color of a shape is found in the middle of its drawn box."""
    dataset = CocoDetection(
        shapes / "train",
        shapes / "annotations/instances_train.json",
        Augmentation(scales=(32,), max_size=32, flip=1.0, crop=0.0),
    )
    figure = figures.draw_training_images(dataset)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[: len(dataset)] == [f"image {image_id}, 32×32" for image_id in dataset.image_ids]
    drawn = figure.axes[0].images[0].get_array()  # [H,W,3], enlarged
    sample = dataset[0]
    flipped = torch.nn.functional.interpolate(
        sample.image.flip(1).permute(2, 0, 1)[None].float(), scale_factor=drawn.shape[0] // 32, mode="nearest"
    )[0].permute(1, 2, 0)
    different = (torch.from_numpy(np.array(drawn)).float() - flipped).abs().amax(-1) > 2
    assert 0 < different.float().mean() < 0.6  # boxes and captions alone

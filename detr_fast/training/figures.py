"""The figures of a run and of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from detr_fast.data import CocoDetection, collate
from detr_fast.drawing import draw_boxes
from detr_fast.fonts import find_font
from detr_fast.images import MEAN, STD
from detr_fast.models import DETR
from detr_fast.ops.boxes import box_cxcywh_to_xyxy
from detr_fast.text import escape
from detr_fast.training.coco import CocoEvaluation

GRID_COLUMNS = 4
GRID_IMAGES = 12
MAX_NAMED = 30  # classes that are named in a legend or a matrix


def plot_curves(records: list[dict[str, Any]]) -> Figure:
    """Plot losses and learning rate over the steps, and AP over the evaluations.

    Args:
        records: The records of metrics.jsonl.
    """
    train = [record for record in records if record["kind"] == "train"]
    evaluations = [record for record in records if record["kind"] == "eval"]
    figure = Figure(figsize=(15, 4), layout="constrained")
    total, parts, scores = figure.subplots(1, 3)
    _plot(total, train, {"loss": "training"}, "total loss, all layers")
    if all("loss" in record for record in evaluations):
        _plot(total, evaluations, {"loss": "validation"}, "total loss, all layers", marker="o")
    rate = total.twinx()
    rate.plot([r["step"] for r in train], [r["lr"] for r in train], color="grey", linewidth=0.8, linestyle="--")
    rate.set_ylabel("learning rate (dashed)")
    terms = {name: name for name in ("loss_ce", "loss_bbox", "loss_giou")}
    _plot(parts, train, terms, "losses of the last layer, before weighting")
    _plot(scores, evaluations, {name: name for name in ("AP", "AP50", "AP75")}, "validation images", marker="o")
    scores.set_ylim(0, 1)
    return figure


def plot_precision_recall(coco: CocoEvaluation) -> Figure:
    """Plot the precision over the recall of each class at IoU 0.5, and the AP of each class.

    Args:
        coco: The evaluation.
    """
    precision = coco.precision()  # [101,C]
    ap = list(coco.metrics["classes"].values())
    known = [k for k in range(len(ap)) if precision[0, k] >= 0]
    order = sorted(known, key=ap.__getitem__)
    names = _drawable(coco.classes)
    figure = Figure(figsize=(13, max(5, 2 + 0.16 * len(order))), layout="constrained")
    curves, bars = figure.subplots(1, 2)
    recall = np.linspace(0, 1, len(precision))
    for k in known:
        curves.plot(recall, precision[:, k], linewidth=1, label=names[k] if len(known) <= MAX_NAMED else None)
    if known:
        curves.plot(recall, precision[:, known].mean(1), color="black", linewidth=2.5, label="mean of the classes")
        curves.legend(fontsize=7)
    curves.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="at IoU 0.5")
    curves.grid(alpha=0.3)
    bars.barh(range(len(order)), [ap[k] for k in order])
    bars.set_yticks(range(len(order)), [names[k] for k in order], fontsize=7)
    bars.set(xlabel="AP", xlim=(0, 1), title="AP of each class with ground truth")
    bars.grid(alpha=0.3, axis="x")
    return figure


def plot_confusion_matrix(coco: CocoEvaluation, *, threshold: float) -> Figure:
    """Plot which class the detections of each class are, as fractions of the boxes of the class.

    Args:
        coco: The evaluation.
        threshold: Minimum score of the detections.
    """
    counts = coco.confusion_matrix(threshold=threshold)  # [C+1,C+1]
    fractions = counts / counts.sum(1, keepdims=True).clip(min=1)
    side = min(4 + 0.45 * len(counts), 20)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    shown = axis.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(shown, label="fraction of the row")
    axis.set(xlabel="detection", ylabel="ground truth", title=f"boxes of IoU 0.5 or more, score ≥ {threshold:g}")
    if len(coco.classes) <= MAX_NAMED:
        names = _drawable(coco.classes)
        axis.set_xticks(range(len(counts)), [*names, "not detected"], rotation=90, fontsize=7)
        axis.set_yticks(range(len(counts)), [*names, "no object"], fontsize=7)
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if fractions[row, column] > 0.5 else "black"
            axis.text(column, row, str(count), ha="center", va="center", fontsize=7, color=color)
    return figure


def draw_predictions(model: DETR, dataset: CocoDetection, coco: CocoEvaluation, *, threshold: float) -> Figure:
    """Draw pairs of ground truth and prediction: of the images of lowest AP50 first, then those of the highest.

    Args:
        model: The model.
        dataset: The data set that was evaluated.
        coco: The evaluation of the model.
        threshold: Minimum score of the predictions.
    """
    ap50 = coco.image_ap50()
    ranked = sorted((i for i, image_id in enumerate(dataset.image_ids) if image_id in ap50), key=_key(dataset, ap50))
    chosen = ranked[: GRID_IMAGES // 2] + ranked[GRID_IMAGES // 2 :][-(GRID_IMAGES // 2) :]
    shown = list(filter(None, map(dataset.load_image, chosen)))
    images = [Image.fromarray(loaded.image.numpy()) for loaded in shown]
    found = model.predict(images, threshold=threshold)
    names = [category.name for category in dataset.categories]
    panels = []
    for loaded, image, detections in zip(shown, images, found, strict=True):
        title = f"image {loaded.image_id}, AP50 {ap50[loaded.image_id]:.2f}"
        drawn = draw_boxes(image, detections["boxes"], detections["labels"], names, detections["scores"])
        panels += [
            _Panel(draw_boxes(image, loaded.boxes, loaded.labels, names), f"{title}: ground truth"),
            _Panel(drawn, f"predicted, score ≥ {threshold:g}"),
        ]
    return _grid(panels, columns=2 * GRID_COLUMNS)


def draw_training_images(dataset: CocoDetection) -> Figure:
    """Draw training images with their ground truth as the model receives them: augmented, resized and normalized.

    Args:
        dataset: The data set with its augmentation; images at equal distances in it are drawn.
    """
    stride = -(-len(dataset) // GRID_IMAGES)
    samples = filter(None, (dataset[index] for index in range(0, len(dataset), stride)))
    names = [category.name for category in dataset.categories]
    panels = []
    for sample in islice(samples, GRID_IMAGES):
        batch = collate([sample]).to("cpu")
        pixels = batch.images[0] * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]  # [3,H,W]
        image = Image.fromarray((pixels * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
        boxes = box_cxcywh_to_xyxy(sample.boxes) * torch.tensor([image.width, image.height] * 2)
        title = f"image {sample.image_id}, {image.width}×{image.height}"
        panels.append(_Panel(draw_boxes(image, boxes, sample.labels, names), title))
    return _grid(panels, columns=GRID_COLUMNS)


class _Panel(NamedTuple):
    image: Image.Image
    title: str


def _key(dataset: CocoDetection, ap50: dict[int, float]) -> Any:
    ids = dataset.image_ids
    return lambda index: ap50[ids[index]]


def _grid(panels: Sequence[_Panel], *, columns: int) -> Figure:
    rows = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(2 * columns, 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, panel in zip(axes, panels, strict=False):
        axis.imshow(panel.image)
        axis.set_title(panel.title, fontsize=7)
    return figure


def _drawable(names: Sequence[str]) -> list[str]:
    """Escape names for which there is no font."""
    return [find_font(escape(name))[0] for name in names]


@contextmanager
def class_names(names: Sequence[str]) -> Iterator[None]:
    """Draw the names of classes as they are: in fonts that have their characters, and without interpreting ``$``."""
    paths = dict.fromkeys([find_font("")[1], *(find_font(escape(name))[1] for name in names)])
    families = [font_manager.FontProperties(fname=path).get_name() for path in paths]
    with rc_context({"font.family": families, "text.parse_math": False}):
        yield


def _plot(axis: Axes, records: list[dict[str, Any]], labels: dict[str, str], title: str, **style: Any) -> None:
    for name, label in labels.items():
        axis.plot([r["step"] for r in records], [r[name] for r in records], label=label, **style)
    axis.set_xlabel("step")
    axis.set_title(title, fontsize=9)
    axis.legend()
    axis.grid(alpha=0.3)

"""The figures of a run: its learning curves, and predictions beside the ground truth."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from detr_fast.data import CocoDetection
from detr_fast.drawing import draw_boxes
from detr_fast.models import DETR
from detr_fast.training.monitor import METRICS_FILE, read_metrics

GRID_IMAGES = 12
GRID_COLUMNS = 4  # pairs of ground truth and prediction


def write_report(output: Path, model: DETR, dataset: CocoDetection, *, threshold: float = 0.5) -> None:
    """Write curves.png and predictions.png.

    Args:
        output: Output directory of the run, with its metrics.jsonl.
        model: The model.
        dataset: The data set whose first images are shown.
        threshold: Minimum score of the boxes that are drawn.
    """
    _save(curves(read_metrics(output / METRICS_FILE)), output / "curves.png")
    _save(predictions(model, dataset, threshold=threshold), output / "predictions.png")


def curves(records: list[dict[str, Any]]) -> Figure:
    """Plot losses and learning rate over the steps, and AP over the evaluations.

    Args:
        records: The records of metrics.jsonl.
    """
    train = [record for record in records if record["kind"] == "train"]
    evaluations = [record for record in records if record["kind"] == "eval"]
    figure = Figure(figsize=(15, 4), layout="constrained")
    total, parts, scores = figure.subplots(1, 3)
    _plot(total, train, ["loss"], "total loss, all layers")
    rate = total.twinx()
    rate.plot([r["step"] for r in train], [r["lr"] for r in train], color="grey", linewidth=0.8, linestyle="--")
    rate.set_ylabel("learning rate (dashed)")
    _plot(parts, train, ["loss_ce", "loss_bbox", "loss_giou"], "losses of the last layer, before weighting")
    _plot(scores, evaluations, ["AP", "AP50", "AP75"], "validation images", marker="o")
    scores.set_ylim(0, 1)
    return figure


def predictions(model: DETR, dataset: CocoDetection, *, threshold: float) -> Figure:
    """Draw pairs of images: the ground truth on the left, the predictions on the right.

    Args:
        model: The model.
        dataset: The data set whose first images are shown.
        threshold: Minimum score of the predictions.
    """
    shown = list(islice(filter(None, map(dataset.load_image, range(len(dataset)))), GRID_IMAGES))
    images = [Image.fromarray(loaded.image.numpy()) for loaded in shown]
    found = model.predict(images, threshold=threshold)
    rows = -(-len(shown) // GRID_COLUMNS)
    figure = Figure(figsize=(4 * GRID_COLUMNS, 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, 2 * GRID_COLUMNS, squeeze=False).ravel()
    names = [category.name for category in dataset.categories]
    for axis in axes:
        axis.axis("off")
    for index, (loaded, image, detections) in enumerate(zip(shown, images, found, strict=True)):
        truth, prediction = axes[2 * index], axes[2 * index + 1]
        truth.imshow(draw_boxes(image, loaded.boxes, loaded.labels, names))
        truth.set_title(f"image {loaded.image_id}: ground truth", fontsize=7)
        prediction.imshow(
            draw_boxes(image, detections["boxes"], detections["labels"], names, scores=detections["scores"])
        )
        prediction.set_title(f"predicted, score ≥ {threshold:g}", fontsize=7)
    return figure


def _plot(axis: Axes, records: list[dict[str, Any]], names: list[str], title: str, **style: Any) -> None:
    for name in names:
        axis.plot([r["step"] for r in records], [r[name] for r in records], label=name, **style)
    axis.set_xlabel("step")
    axis.set_title(title, fontsize=9)
    axis.legend()
    axis.grid(alpha=0.3)


def _save(figure: Figure, path: Path) -> None:
    partial = path.with_name(f"partial.{path.name}")
    figure.savefig(partial, dpi=110)
    partial.replace(path)

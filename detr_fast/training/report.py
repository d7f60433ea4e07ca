"""Writing the figures of a run and of an evaluation."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from detr_fast.data import CocoDetection
from detr_fast.models import DETR
from detr_fast.training.coco import CocoEvaluation
from detr_fast.training.figures import (
    class_names,
    draw_predictions,
    draw_training_images,
    plot_confusion_matrix,
    plot_curves,
    plot_precision_recall,
)
from detr_fast.training.monitor import read_metrics

THRESHOLD = 0.5  # minimum score of the detections that are drawn and counted


def write_training_images(output: Path, dataset: CocoDetection) -> None:
    """Write training_images.png, which shows before the training what the model will receive.

    Args:
        output: Output directory of the run.
        dataset: The training data set.
    """
    _save(draw_training_images(dataset), output / "training_images.png")


def write_curves(output: Path) -> None:
    """Write curves.png of a run.

    Args:
        output: Output directory of the run, with its metrics.jsonl.
    """
    _save(plot_curves(read_metrics(output)), output / "curves.png")


def write_evaluation(output: Path, model: DETR, dataset: CocoDetection, coco: CocoEvaluation) -> None:
    """Write predictions.png, precision_recall.png and confusion_matrix.png.

    Args:
        output: The directory; it is made if there is none.
        model: The model.
        dataset: The data set that was evaluated.
        coco: The evaluation of the model.
    """
    output.mkdir(parents=True, exist_ok=True)
    _save(draw_predictions(model, dataset, coco, threshold=THRESHOLD), output / "predictions.png")
    with class_names(coco.classes):
        _save(plot_precision_recall(coco), output / "precision_recall.png")
        _save(plot_confusion_matrix(coco, threshold=THRESHOLD), output / "confusion_matrix.png")


def _save(figure: Figure, path: Path) -> None:
    partial = path.with_name(f"partial.{path.name}")
    figure.savefig(partial, dpi=110)
    partial.replace(path)

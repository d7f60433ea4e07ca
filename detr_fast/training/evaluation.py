"""COCO's bbox metrics, over all ranks."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from faster_coco_eval import COCO, COCOeval_faster

from detr_fast.data import Batch, Category, CocoDetection, Resize
from detr_fast.models import DETR, postprocess
from detr_fast.training.loading import build_eval_data

METRICS = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"),
)


class EvaluationStopped(Exception):
    """Evaluation was asked to stop before it was through."""


@torch.inference_mode()
def detect(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    dataset: CocoDetection,
    accelerator: Accelerator,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> np.ndarray:
    """Run the model over this rank's batches.

    Args:
        model: gives ``pred_logits`` and ``pred_boxes``.
        batches: of the data set's images.
        dataset: whose category ids the labels are mapped back to.
        accelerator: gives the device and the precision.
        should_stop: asked before each batch.

    Returns:
        float64 [K,7]: image id, x, y, width, height in pixels, score, category id.

    Raises:
        EvaluationStopped: ``should_stop`` said so.
    """
    category_ids = torch.tensor([category.id for category in dataset.categories])
    was_training = model.training
    model.eval()
    rows = [torch.zeros(0, 7, dtype=torch.float64)]
    for batch in batches:
        if should_stop():
            raise EvaluationStopped
        if not len(batch):
            continue
        batch = batch.to(accelerator.device, non_blocking=True)
        with accelerator.autocast():
            output = model(batch.images, batch.mask)
        results = postprocess(output.pred_logits.float(), output.pred_boxes.float(), batch.original_sizes)
        for image_id, result in zip(batch.image_ids, results, strict=True):
            boxes, scores, labels = (result[key].cpu().double() for key in ("boxes", "scores", "labels"))
            xywh = torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), 1)
            ids = torch.full_like(scores, image_id)
            rows.append(torch.column_stack((ids, xywh, scores, category_ids[labels.long()].double())))
    model.train(was_training)
    return torch.cat(rows).numpy()


def coco_metrics(ground_truth: dict[str, Any], detections: np.ndarray) -> dict[str, Any]:
    """Score detections.

    Args:
        ground_truth: a COCO data set: ``images``, ``annotations`` (crowds included) and ``categories``.
        detections: [K,7] as :func:`detect` gives them, of all images.

    Returns:
        COCO's twelve numbers by the names in :data:`METRICS`, and ``"classes"``: AP by category name. -1
        stands for a number without any ground truth, as in COCO's own tool.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(ground_truth)
        results = truth.loadRes(detections)
        evaluation = COCOeval_faster(truth, results, iouType="bbox")
        evaluation.run()
    metrics: dict[str, Any] = {
        name: float(value) for name, value in zip(METRICS, evaluation.stats[: len(METRICS)], strict=True)
    }
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, class], all sizes
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    metrics["classes"] = {}
    for k, category_id in enumerate(evaluation.params.catIds):
        values = precision[:, :, k]
        values = values[values > -1]
        metrics["classes"][names[category_id]] = float(values.mean()) if values.size else -1.0
    return metrics


def evaluate(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    dataset: CocoDetection,
    accelerator: Accelerator,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Detect on every rank and score all of it; arguments of :func:`detect`, metrics of :func:`coco_metrics`."""
    mine = detect(model, batches, dataset, accelerator, should_stop=should_stop)
    detections = np.concatenate(gather_object([mine]))
    metrics = [coco_metrics(dataset.ground_truth(), detections) if accelerator.is_main_process else {}]
    return broadcast_object_list(metrics)[0]


def evaluate_model(
    model: str | Path,
    images: str | Path,
    annotations: str | Path,
    *,
    batch_size: int = 2,
    num_workers: int = 2,
    mixed_precision: str = "no",
) -> dict[str, Any]:
    """Score a saved model on COCO-format data, over all ranks of the launch.

    Args:
        model: a directory written by ``save_pretrained``, as a run's ``model``, or a repository on the hub.
        images: directory of the pictures.
        annotations: COCO detection JSON.
        batch_size: pictures in a batch, on each rank.
        num_workers: processes that load pictures, on each rank.
        mixed_precision: no, fp16 or bf16.

    Returns:
        The metrics of :func:`coco_metrics`.

    Raises:
        CheckpointError: the model cannot be loaded.
        DataError: the data set cannot be used.
    """
    accelerator = Accelerator(mixed_precision=mixed_precision)
    detector = DETR.from_pretrained(model).to(accelerator.device)
    categories = None if detector.categories is None else [Category(c["id"], c["name"]) for c in detector.categories]
    dataset, loader = build_eval_data(
        images,
        annotations,
        accelerator,
        transform=Resize(detector.image_size, detector.max_image_size),
        categories=categories,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    return evaluate(detector, loader, dataset, accelerator)

"""Evaluation with the bounding box metrics of COCO, on all ranks."""

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
    """The evaluation was stopped before its end."""


@torch.inference_mode()
def detect(
    model: torch.nn.Module,
    batches: Iterable[Batch],
    dataset: CocoDetection,
    accelerator: Accelerator,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> np.ndarray:
    """Run the model on the batches of this rank.

    Args:
        model: A model whose output has ``pred_logits`` and ``pred_boxes``.
        batches: Batches of images of the data set.
        dataset: The data set, to whose category ids labels are mapped.
        accelerator: Determines the device and the precision.
        should_stop: Called before each batch.

    Returns:
        The K detections, float64 [K,7]: image id, x, y, width, height in pixels, score, category id.

    Raises:
        EvaluationStopped: ``should_stop`` returned True.
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
    """Compute the bounding box metrics of COCO.

    Args:
        ground_truth: A COCO data set with ``images``, ``annotations`` (crowd regions included) and ``categories``.
        detections: The K detections of all images, [K,7] as :func:`detect` returns them.

    Returns:
        The twelve metrics by the names in :data:`METRICS`, and ``"classes"``: AP by category name. As in pycocotools,
        a metric without any ground truth is -1.
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
    """Run the model on all ranks and compute the metrics of all detections.

    The arguments are those of :func:`detect`, the metrics those of :func:`coco_metrics`.
    """
    local = detect(model, batches, dataset, accelerator, should_stop=should_stop)
    detections = np.concatenate(gather_object([local]))
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
    """Evaluate a saved model on COCO-format data, on all ranks of the launch.

    Args:
        model: A directory written by ``save_pretrained``, such as ``model`` in the output directory of a run, or the id
            of a repository on the Hugging Face Hub.
        images: Directory of the images.
        annotations: COCO detection JSON.
        batch_size: Images per batch on each rank.
        num_workers: Processes that load images on each rank.
        mixed_precision: ``"no"``, ``"fp16"`` or ``"bf16"``.

    Returns:
        The metrics of :func:`coco_metrics`.

    Raises:
        CheckpointError: The model cannot be loaded.
        DataError: The data set cannot be used.
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

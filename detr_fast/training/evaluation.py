"""Evaluation with the bounding box metrics of COCO, on all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from detr_fast.criterion import SetCriterion
from detr_fast.data import Batch, Category, CocoDetection, PackedBatch, Resize
from detr_fast.data.annotations import Orientation
from detr_fast.models import DETR, DETROutput, postprocess
from detr_fast.models.inference import evaluating
from detr_fast.training.coco import CocoEvaluation
from detr_fast.training.loading import build_eval_data
from detr_fast.training.monitor import TrainingError
from detr_fast.training.ranks import build_accelerator


class EvaluationStopped(Exception):
    """The evaluation was stopped before its end."""


class Evaluation(NamedTuple):
    """The result of an evaluation.

    Attributes:
        metrics: The metrics of :func:`~detr_fast.training.coco.coco_metrics`; with a criterion also ``"loss"``, the
            mean of the loss over the images.
        coco: What explains the metrics; None on other ranks than the main process.
    """

    metrics: dict[str, Any]
    coco: CocoEvaluation | None


@torch.inference_mode()
def detect(
    model: torch.nn.Module,
    batches: Iterable[PackedBatch],
    dataset: CocoDetection,
    accelerator: Accelerator,
    *,
    criterion: SetCriterion | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[np.ndarray, tuple[float, int]]:
    """Run the model on the batches of this rank.

    Args:
        model: A model whose output has ``pred_logits`` and ``pred_boxes``.
        batches: Batches of images of the data set.
        dataset: The data set.
        accelerator: Determines the device and the precision.
        criterion: Computes the loss; None for none.
        should_stop: Called before each batch.

    Returns:
        The K detections, float64 [K,7]: index of the image in the data set, x, y, width, height in pixels, score,
        label; and the sum of the losses of the images with their number, which is 0 without a criterion.

    Raises:
        EvaluationStopped: ``should_stop`` returned True.
        TrainingError: The outputs of the model are not finite, as far as the criterion can tell.
    """
    indices = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
    rows = [torch.zeros(0, 7, dtype=torch.float64)]
    losses = [torch.zeros(2, device=accelerator.device)]  # the sum of the losses of a batch, and its number of images
    with evaluating(model), nullcontext() if criterion is None else evaluating(criterion):
        for packed in batches:
            if should_stop():
                raise EvaluationStopped
            if not len(packed):
                continue
            batch = packed.to(accelerator.device, non_blocking=True)
            with accelerator.autocast():
                output = model(batch.images, batch.padding)
            if criterion is not None:
                losses.append(_loss(criterion, output, batch))
            results = postprocess(output.pred_logits.float(), output.pred_boxes.float(), batch.original_sizes)
            for image_id, result in zip(batch.image_ids, results, strict=True):
                boxes, scores, labels = (result[key].cpu().double() for key in ("boxes", "scores", "labels"))
                xywh = torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), 1)
                images = torch.full_like(scores, indices[image_id])
                rows.append(torch.column_stack((images, xywh, scores, labels)))
    total, count = torch.stack(losses).double().sum(0).tolist()
    return torch.cat(rows).numpy(), (total, int(count))


def _loss(criterion: SetCriterion, output: DETROutput, batch: Batch) -> Tensor:
    """Return the sum of the losses of the images of a batch, and its number of images: float32 [2]."""
    try:
        loss = criterion(output.logits.float(), output.boxes.float(), batch.targets).total
    except ValueError as error:
        raise TrainingError(f"evaluation, images {batch.image_ids}: {error}") from error
    return torch.stack([loss * len(batch), torch.full_like(loss, len(batch))])


def evaluate(
    model: torch.nn.Module,
    batches: Iterable[PackedBatch],
    dataset: CocoDetection,
    accelerator: Accelerator,
    *,
    criterion: SetCriterion | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Run the model on all ranks and evaluate all detections.

    The arguments and errors are those of :func:`detect`.
    """
    detections, losses = detect(model, batches, dataset, accelerator, criterion=criterion, should_stop=should_stop)
    gathered = np.concatenate(gather_object([detections]))
    loss, images = np.sum(gather_object([losses]), axis=0)
    coco = CocoEvaluation.of_dataset(dataset, gathered) if accelerator.is_main_process else None
    metrics = [coco.metrics if coco else {}]
    metrics = broadcast_object_list(metrics)
    if images:
        metrics[0]["loss"] = float(loss / images)
    return Evaluation(metrics[0], coco)


def evaluate_model(
    model: str | Path,
    images: str | Path,
    annotations: str | Path,
    *,
    batch_size: int = 2,
    num_workers: int = 2,
    mixed_precision: str = "no",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    orientation: Orientation = "upright",
    figures: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluate a saved model on a data set, on all ranks of the launch.

    Args:
        model: A directory written by ``save_pretrained``, such as ``model`` in the output directory of a run, or the id
            of a repository on the Hugging Face Hub.
        images: Directory of the images.
        annotations: As ``annotation_file`` of :class:`~detr_fast.data.CocoDetection`.
        batch_size: Images per batch on each rank.
        num_workers: Processes that load images on each rank.
        mixed_precision: ``"no"``, ``"fp16"`` or ``"bf16"``.
        device: ``"auto"`` uses a GPU if there is one.
        orientation: As for :class:`~detr_fast.data.CocoDetection`.
        figures: Directory for the figures of :func:`~detr_fast.training.report.write_evaluation`; None for none.

    Returns:
        The metrics of :func:`~detr_fast.training.coco.coco_metrics`.

    Raises:
        CheckpointError: The model cannot be loaded.
        DataError: The data set cannot be used.
        ConfigError: There is no such device, it does not support the precision, or the launched processes are no ranks.
    """
    accelerator = build_accelerator(mixed_precision=mixed_precision, device=device)
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
        orientation=orientation,
    )
    metrics, coco = evaluate(detector, loader, dataset, accelerator)
    if coco is not None and figures is not None:
        from detr_fast.training.report import write_evaluation  # imports matplotlib

        write_evaluation(Path(figures), detector, dataset, coco)
    return metrics

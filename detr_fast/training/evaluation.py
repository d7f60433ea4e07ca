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

from detr_fast.checkpoints.state_dict import CheckpointError
from detr_fast.criterion import SetCriterion
from detr_fast.data import Batch, Category, CocoDetection, PackedBatch, Resize
from detr_fast.data.annotations import Orientation
from detr_fast.models import DETR, DETROutput
from detr_fast.models.inference import best_classes, evaluating, scale_boxes
from detr_fast.training.coco import CocoEvaluation
from detr_fast.training.loading import build_eval_data
from detr_fast.training.monitor import TrainingError
from detr_fast.training.prefetch import DeviceBatches
from detr_fast.training.ranks import build_accelerator


class EvaluationStopped(Exception):
    """The evaluation was stopped before its end."""


class Evaluation(NamedTuple):
    """The result of an evaluation.

    Attributes:
        metrics: The metrics of :func:`~detr_fast.training.coco.coco_metrics`; with a criterion also ``"loss"``, the
            mean of the loss over the images. As in training, it is computed for each batch, and depends slightly on
            which images share one.
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

    The detections remain on the device, 24 bytes a query, and are copied to the host once, after the last batch.

    Args:
        model: A model whose output has ``pred_logits`` and ``pred_boxes``.
        batches: Batches of images of the data set.
        dataset: The data set.
        accelerator: Determines the device and the precision.
        criterion: Computes the loss; None for none.
        should_stop: Called before each batch with an image.

    Returns:
        The K detections, float64 [K,7]: index of the image in the data set, x, y, width, height in pixels, score,
        label; and the sum of the losses of the images with their number, which is 0 without a criterion.

    Raises:
        EvaluationStopped: ``should_stop`` returned True.
        TrainingError: The outputs of the model are not finite, as far as the criterion can tell.
    """
    indices = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
    found: list[Tensor] = []
    images: list[int] = []
    sizes: list[tuple[int, int]] = []
    losses: list[Tensor] = []
    with evaluating(model), nullcontext() if criterion is None else evaluating(criterion):
        for batch in DeviceBatches(filter(len, batches), accelerator.device):
            if should_stop():
                raise EvaluationStopped
            with accelerator.autocast():
                output = model(batch.images, batch.padding)
            if criterion is not None:
                losses.append(_loss(criterion, output, batch))
            found.append(_detections(output.pred_logits.float(), output.pred_boxes.float()))
            images += [indices[image_id] for image_id in batch.image_ids]
            sizes += batch.original_sizes
    rows = _rows(torch.cat(found).cpu(), images, sizes).numpy() if found else np.zeros((0, 7))
    total, count = torch.stack(losses).sum(0, dtype=torch.float64).tolist() if losses else (0.0, 0)
    return rows, (total, int(count))


def _detections(logits: Tensor, boxes: Tensor) -> Tensor:
    """Return the detections [B,Q,6] of logits and boxes: xyxy as fractions of the images, score, label."""
    scores, labels, corners = best_classes(logits, boxes)
    return torch.cat((corners, torch.stack((scores, labels.to(scores.dtype)), -1)), -1)


def _rows(found: Tensor, images: list[int], sizes: list[tuple[int, int]]) -> Tensor:
    """Return the rows of :func:`detect` for the detections [N,Q,6] of N images."""
    boxes = scale_boxes(found[..., :4], sizes).double()
    numbers = torch.tensor(images, dtype=torch.float64).view(-1, 1, 1).expand(-1, found.shape[1], 1)
    xywh = torch.cat((boxes[..., :2], boxes[..., 2:] - boxes[..., :2]), -1)
    return torch.cat((numbers, xywh, found[..., 4:].double()), -1).flatten(0, 1)


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
    num_workers: int | None = None,
    mixed_precision: str = "no",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    orientation: Orientation = "upright",
    figures: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluate a saved model on a data set, on all ranks of the launch.

    Args:
        model: As for :meth:`detr_fast.DETR.from_pretrained`, such as the output directory of a run.
        images: Directory of the images.
        annotations: As ``annotation_file`` of :class:`~detr_fast.data.CocoDetection`.
        batch_size: Images per batch on each rank.
        num_workers: Processes that load images on each rank; None for the number of
            :func:`~detr_fast.training.loading.choose_num_workers`.
        mixed_precision: ``"no"``, ``"fp16"`` or ``"bf16"``.
        device: ``"auto"`` uses a GPU if there is one.
        orientation: As for :class:`~detr_fast.data.CocoDetection`.
        figures: Directory for the figures of :func:`~detr_fast.training.report.write_evaluation`; None for none.

    Returns:
        The metrics of :func:`~detr_fast.training.coco.coco_metrics`.

    Raises:
        CheckpointError: The model cannot be loaded, or has no categories and another number of classes than the data
            set.
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
    if categories is None and detector.num_classes != len(dataset.categories):
        raise CheckpointError(
            f"{model}: the names of the model's {detector.num_classes} classes are not known, and {annotations} has "
            f"{len(dataset.categories)} categories, so that labels cannot be compared; of published weights, give "
            "the name instead of a file, otherwise save the model with DETR.from_pretrained(..., categories=...)"
        )
    metrics, coco = evaluate(detector, loader, dataset, accelerator)
    if coco is not None and figures is not None:
        from detr_fast.training.report import write_evaluation  # imports matplotlib

        write_evaluation(Path(figures), detector, dataset, coco)
    return metrics

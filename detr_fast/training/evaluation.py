"""Evaluation with the bounding box metrics of COCO, on all ranks."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from hotcoco import COCO, COCOeval
from torch import Tensor

from detr_fast.data import Category, CocoDetection, PackedBatch, Resize
from detr_fast.data.annotations import Orientation
from detr_fast.models import DETR
from detr_fast.models.inference import best_classes, scale_boxes
from detr_fast.training.loading import DeviceBatches, build_eval_data
from detr_fast.training.ranks import build_accelerator

METRICS = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"),
)


class EvaluationStopped(Exception):
    """The evaluation was stopped before its end."""


@torch.inference_mode()
def detect(
    model: torch.nn.Module,
    batches: Iterable[PackedBatch],
    dataset: CocoDetection,
    accelerator: Accelerator,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> np.ndarray:
    """Run the model on the batches of this rank.

    The detections remain on the device, 24 bytes a query, and are copied to the host once, after the last batch.

    Args:
        model: A model whose output has ``pred_logits`` and ``pred_boxes``.
        batches: Batches of images of the data set.
        dataset: The data set.
        accelerator: Determines the device and the precision.
        should_stop: Called before each batch with an image.

    Returns:
        The K detections, float64 [K,7]: index of the image in the data set, x, y, width, height in pixels, score,
        label.

    Raises:
        EvaluationStopped: ``should_stop`` returned True.
    """
    indices = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
    was_training = model.training
    model.eval()
    found: list[Tensor] = []
    images: list[int] = []
    sizes: list[tuple[int, int]] = []
    for batch in DeviceBatches(filter(len, batches), accelerator.device):
        if should_stop():
            raise EvaluationStopped
        with accelerator.autocast():
            output = model(batch.images, batch.padding)
        found.append(_detections(output.pred_logits.float(), output.pred_boxes.float()))
        images += [indices[image_id] for image_id in batch.image_ids]
        sizes += batch.original_sizes
    model.train(was_training)
    return _rows(torch.cat(found).cpu(), images, sizes).numpy() if found else np.zeros((0, 7))


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


def coco_metrics(ground_truth: dict[str, Any], detections: np.ndarray) -> dict[str, Any]:
    """Compute the bounding box metrics of COCO.

    Args:
        ground_truth: A COCO data set with ``images``, ``annotations`` (crowd regions included) and ``categories``. Its
            ids may be any integers that differ as float64.
        detections: The K detections of all images, [K,7]: image id, x, y, width, height in pixels, score, category id.
            Detections of categories that the data set does not list are ignored.

    Returns:
        The twelve metrics by the names in :data:`METRICS`, and ``"classes"``: AP by category name. As in pycocotools,
        a metric without any ground truth is -1.

    Raises:
        ValueError: A detection is of an image that the data set does not list, or ids do not differ as float64.
    """
    detections = np.asarray(detections, dtype=np.float64).reshape(-1, 7)
    numbers = []
    for section, column in (("images", 0), ("categories", 6)):
        ids = [float(entry["id"]) for entry in ground_truth[section]]
        if len(set(ids)) < len(ids):
            raise ValueError(f"the ids of {section} must differ as float64")
        lookup = {identifier: number for number, identifier in enumerate(ids)}
        numbers.append(np.array([lookup.get(value, -1) for value in detections[:, column].tolist()], dtype=np.float64))
    images, categories = numbers
    if (images < 0).any():
        raise ValueError(f"the data set lists no image {detections[images < 0][0, 0]:.0f}, which has a detection")
    return _metrics(ground_truth, np.column_stack((images, detections[:, 1:6], categories)))


def _metrics(ground_truth: dict[str, Any], detections: np.ndarray) -> dict[str, Any]:
    """Compute the metrics of detections with the index of the image and of the category instead of their ids.

    Evaluators handle ids in float64, and some take the id 0 for a box without a match, so that they get numbers from 1.
    Those of images are in the order of their ids, which decides between detections of equal score.
    """
    images, categories = ground_truth["images"], ground_truth["categories"]
    image_numbers = {image: number for number, image in enumerate(sorted(image["id"] for image in images), 1)}
    category_numbers = {category["id"]: number for number, category in enumerate(categories, 1)}
    annotations = [
        {
            **annotation,
            "id": number,
            "image_id": image_numbers[annotation["image_id"]],
            "category_id": category_numbers[annotation["category_id"]],
        }
        for number, annotation in enumerate(ground_truth["annotations"], 1)
        if annotation["image_id"] in image_numbers and annotation["category_id"] in category_numbers
    ]
    numbered = {
        "images": [{"id": number} for number in image_numbers.values()],
        "annotations": annotations,
        "categories": [{"id": number, "name": str(number)} for number in category_numbers.values()],
    }
    listed = detections[detections[:, 6] >= 0]
    listed[:, 0] = np.array([image_numbers[image["id"]] for image in images])[listed[:, 0].astype(np.int64)]
    listed[:, 6] += 1
    with contextlib.redirect_stdout(io.StringIO()):  # the evaluator prints the metrics
        truth = COCO(numbered)
        evaluation = COCOeval(truth, truth.load_res(listed), "bbox")
        evaluation.run()
    metrics: dict[str, Any] = {name: float(value) for name, value in zip(METRICS, evaluation.stats, strict=True)}
    assert evaluation.eval is not None
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, class], all sizes
    names = Counter(category["name"] for category in categories)
    metrics["classes"] = {}
    for k, category in enumerate(categories):
        values = precision[:, :, k]
        values = values[values > -1]
        name = category["name"] if names[category["name"]] == 1 else f"{category['name']} ({category['id']})"
        metrics["classes"][name] = float(values.mean()) if values.size else -1.0
    return metrics


def evaluate(
    model: torch.nn.Module,
    batches: Iterable[PackedBatch],
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
    metrics = [_dataset_metrics(dataset, detections) if accelerator.is_main_process else {}]
    return broadcast_object_list(metrics)[0]


def _dataset_metrics(dataset: CocoDetection, detections: np.ndarray) -> dict[str, Any]:
    """Compute the metrics of detections with the index of the image in the data set and the label."""
    truth = dataset.ground_truth()  # also lists images without a file, and perhaps other categories than the model has
    image_index = {image["id"]: index for index, image in enumerate(truth["images"])}
    category_index = {category["id"]: index for index, category in enumerate(truth["categories"])}
    images = np.array([image_index[image_id] for image_id in dataset.image_ids])
    categories = np.array([category_index.get(category.id, -1) for category in dataset.categories])
    indexed = detections.copy()
    indexed[:, 0] = images[detections[:, 0].astype(np.int64)]
    indexed[:, 6] = categories[detections[:, 6].astype(np.int64)]
    return _metrics(truth, indexed)


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
) -> dict[str, Any]:
    """Evaluate a saved model on COCO-format data, on all ranks of the launch.

    Args:
        model: A directory written by ``save_pretrained``, such as ``model`` in the output directory of a run, or the id
            of a repository on the Hugging Face Hub.
        images: Directory of the images.
        annotations: COCO detection JSON.
        batch_size: Images per batch on each rank.
        num_workers: Processes that load images on each rank; None for the number of
            :func:`~detr_fast.training.loading.choose_num_workers`.
        mixed_precision: ``"no"``, ``"fp16"`` or ``"bf16"``.
        device: ``"auto"`` uses a GPU if there is one.
        orientation: As for :class:`~detr_fast.data.CocoDetection`.

    Returns:
        The metrics of :func:`coco_metrics`.

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
    return evaluate(detector, loader, dataset, accelerator)

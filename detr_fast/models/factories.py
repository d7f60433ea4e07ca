"""The models of the paper by their names, with weights from wherever they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detr_fast.models.detr import DETR

COCO_CLASSES = 91


def build_detr(
    backbone: str, num_classes: int | None = None, weights: str | Path | None = None, **overrides: Any
) -> DETR:
    """Build a DETR, with weights or without.

    Args:
        backbone: a name of ``BACKBONES``.
        num_classes: without no-object. None takes the weights' number, and COCO's 91 where there are none. With another
            number than the weights' everything but the class head is loaded, and a warning says so.
        weights: a checkpoint file (.pth or .safetensors; the original's, Hugging Face's or MMDetection's), a directory
            written by ``save_pretrained``, ours or transformers', or a repository of one on the Hugging Face hub.
            None gives a random model.
        **overrides: any other argument of :class:`DETR`.

    Returns:
        The model, in evaluation mode where it has weights, else in training mode.

    Raises:
        FileNotFoundError: the weights are nowhere.
        CheckpointError: they cannot be read, or are another model's.
    """
    if weights is None:
        return DETR(COCO_CLASSES if num_classes is None else num_classes, backbone=backbone, **overrides)
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    return DETR.from_pretrained(weights, backbone=backbone, **overrides)


def detr_resnet50(num_classes: int | None = None, weights: str | Path | None = None, **overrides: Any) -> DETR:
    """DETR with a ResNet-50, the paper's base model; see :func:`build_detr`."""
    return build_detr("resnet50", num_classes, weights, **overrides)


def detr_resnet50_dc5(num_classes: int | None = None, weights: str | Path | None = None, **overrides: Any) -> DETR:
    """DETR with a ResNet-50 of stride 16; see :func:`build_detr`."""
    return build_detr("resnet50_dc5", num_classes, weights, **overrides)


def detr_resnet101(num_classes: int | None = None, weights: str | Path | None = None, **overrides: Any) -> DETR:
    """DETR with a ResNet-101; see :func:`build_detr`."""
    return build_detr("resnet101", num_classes, weights, **overrides)


def detr_resnet101_dc5(num_classes: int | None = None, weights: str | Path | None = None, **overrides: Any) -> DETR:
    """DETR with a ResNet-101 of stride 16; see :func:`build_detr`."""
    return build_detr("resnet101_dc5", num_classes, weights, **overrides)


def detr_resnet18(num_classes: int | None = None, weights: str | Path | None = None, **overrides: Any) -> DETR:
    """DETR with a ResNet-18; see :func:`build_detr`."""
    return build_detr("resnet18", num_classes, weights, **overrides)


def detr_resnet34(num_classes: int | None = None, weights: str | Path | None = None, **overrides: Any) -> DETR:
    """DETR with a ResNet-34; see :func:`build_detr`."""
    return build_detr("resnet34", num_classes, weights, **overrides)

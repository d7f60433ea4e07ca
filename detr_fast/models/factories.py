"""The models of the DETR paper by name, with or without pretrained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detr_fast.models.detr import DETR

COCO_CLASSES = 91


def build_detr(
    backbone: str, num_classes: int | None = None, weights: str | Path | None = None, **overrides: Any
) -> DETR:
    """Build a DETR with or without pretrained weights.

    Args:
        backbone: A name in :data:`BACKBONES`.
        num_classes: Number of classes without no-object. None stands for the number of the weights, or COCO's 91
            without weights. If it is not the number of the weights, all weights but those of the class head are loaded,
            and a warning is logged.
        weights: A checkpoint file (.pth or .safetensors) of facebookresearch/detr, Hugging Face or MMDetection; a
            directory written by ``save_pretrained`` of this library or transformers; a name of published weights, such
            as ``"detr_resnet50"``; the URL of a file with its SHA-256 (see
            :func:`~detr_fast.checkpoints.published.download`); or the id of a repository on the Hugging Face Hub. None
            initializes the model with random weights.
        **overrides: Other arguments of :class:`DETR`. Of another ``num_queries`` than that of the weights the first
            queries are loaded, as many as both have, and a warning is logged.

    Returns:
        The model, in evaluation mode with weights, in training mode without.

    Raises:
        FileNotFoundError: The weights do not exist, or cannot be downloaded.
        CheckpointError: The weights cannot be read, do not have the expected checksum, or are those of another model.
    """
    if weights is None:
        return DETR(COCO_CLASSES if num_classes is None else num_classes, backbone=backbone, **overrides)
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    return DETR.from_pretrained(weights, backbone=backbone, **overrides)


def detr_resnet50(num_classes: int | None = None, weights: str | Path | None = None, **overrides: Any) -> DETR:
    """DETR with a ResNet-50, the base model of the paper; see :func:`build_detr`."""
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

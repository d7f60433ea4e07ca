"""The model of a run: built from its configuration, saved where it can be loaded from."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from detr_fast.data import Category
from detr_fast.models import DETR, CheckpointError, build_detr, load_backbone_weights
from detr_fast.training.config import ConfigError, DataConfig, ModelConfig


def build_model(config: ModelConfig, data: DataConfig, categories: Sequence[Category]) -> DETR:
    """Build the model for these categories, with the weights the configuration names.

    Raises:
        CheckpointError: weights cannot be read or do not fit.
        FileNotFoundError: weights are nowhere.
        ConfigError: an argument is out of its range.
    """
    arguments = asdict(config)
    backbone, weights = arguments.pop("backbone"), arguments.pop("weights")
    backbone_weights = arguments.pop("backbone_weights")
    try:
        model = build_detr(
            backbone,
            len(categories),
            weights,
            categories=[category._asdict() for category in categories],
            image_size=data.eval_size,
            max_image_size=data.eval_max_size,
            **arguments,
        )
    except CheckpointError:
        raise
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
    if backbone_weights is not None:
        load_backbone_weights(model, backbone_weights)
    return model.train()


def save_model(model: DETR, directory: Path) -> None:
    """Write the model so that ``DETR.from_pretrained`` finds all of the old one or all of the new one."""
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    old = directory.with_name(directory.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    partial.rename(directory)
    shutil.rmtree(old, ignore_errors=True)

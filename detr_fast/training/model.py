"""Building the model of a run from its configuration, and saving it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from detr_fast.data import Category
from detr_fast.models import DETR, CheckpointError, build_detr, load_backbone_weights
from detr_fast.models.detr import MAX_LAYERS
from detr_fast.training.config import ConfigError, DataConfig, ModelConfig, Part
from detr_fast.training.files import synchronize, synchronize_directory

_OF_TRAINING = ("weights", "backbone_weights", "freeze")  # options that are no arguments of DETR
_PREFIXES: dict[Part, tuple[str, ...]] = {
    "backbone": ("backbone.0.",),
    "encoder": ("backbone.1.", "input_proj.", "transformer.encoder."),
    "decoder": ("transformer.decoder.",),
    "queries": ("query_embed.",),
    "class_head": ("class_embed.",),
    "box_head": ("bbox_embed.",),
}


def freeze(model: DETR, parts: Sequence[Part]) -> None:
    """Exclude parts of a model from training; their gradients are not computed.

    Args:
        model: The model.
        parts: ``"backbone"``, ``"encoder"`` (with the projection of the features and a learned position encoding),
            ``"decoder"``, ``"queries"``, ``"class_head"`` and ``"box_head"``. What is not listed is left as it is.

    Raises:
        ConfigError: Nothing is left to train.
    """
    frozen = tuple(prefix for part in parts for prefix in _PREFIXES[part])
    for name, parameter in model.named_parameters():
        if name.startswith(frozen):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"model.freeze: {', '.join(parts)} are all parts, and nothing is left to train")


def check_model(config: ModelConfig) -> None:
    """Check the options of the model without memory for its weights, before any data are read.

    Args:
        config: The options of the model.

    Raises:
        ConfigError: An option is out of range.
    """
    layers = {name: getattr(config, name) for name in ("num_encoder_layers", "num_decoder_layers")}
    shallow = {name: number if number > MAX_LAYERS else min(number, 1) for name, number in layers.items()}
    arguments = {name: value for name, value in asdict(config).items() if name not in _OF_TRAINING}
    try:
        with torch.device("meta"):
            DETR(**arguments | shallow)
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:  # PyTorch's for sizes beyond 64 bits
        raise ConfigError(f"model: {error}") from error


def describe_start(config: ModelConfig) -> str | None:
    """Describe why a model that starts from these weights does not learn; None if it does."""
    if config.backbone == "resnet_tiny" or config.weights is not None or config.backbone_weights is not None:
        return None
    return (
        f"the backbone {config.backbone} has random weights and frozen batch norms, with which it does not learn; set "
        "model.weights to weights of a DETR, or model.backbone_weights to ImageNet weights of the backbone"
    )


def build_model(config: ModelConfig, data: DataConfig, categories: Sequence[Category]) -> DETR:
    """Build the model of a run in training mode.

    Args:
        config: The options of the model, with the weights to start from.
        data: The data sets, for the image size.
        categories: The categories of the data set.

    Raises:
        CheckpointError: The weights cannot be read or do not fit.
        FileNotFoundError: The weights do not exist.
        ConfigError: An option is out of range.
    """
    arguments = asdict(config)
    backbone, weights = arguments.pop("backbone"), arguments.pop("weights")
    backbone_weights, frozen = arguments.pop("backbone_weights"), arguments.pop("freeze")
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
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_describe_configuration(weights)}") from error
    except (MemoryError, RuntimeError, ValueError) as error:  # PyTorch fails to allocate with a RuntimeError
        raise ConfigError(f"model: {error}") from error
    if backbone_weights is not None:
        load_backbone_weights(model, backbone_weights)
    freeze(model, frozen)
    return model.train()


def _describe_configuration(weights: str | None) -> str:
    """Say which configuration has the architecture of the weights; an empty text where none is known."""
    if weights is None or not os.path.exists(weights):  # a name of published weights, or a URL
        return ""
    for directory in (Path(weights), Path(weights).parent, Path(weights).parent.parent):  # of a run, model, checkpoint
        if (directory / "config.yaml").is_file():
            return (
                f"; begin with the configuration of the run that the weights are of: --config {directory}/config.yaml"
            )
    return ""


def save_model(model: DETR, directory: Path) -> None:
    """Save the model to a temporary directory and rename it, so that a saved model is never incomplete."""
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    for file in partial.iterdir():
        synchronize(file)
    old = directory.with_name(directory.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    partial.rename(directory)
    synchronize_directory(directory.parent)
    shutil.rmtree(old, ignore_errors=True)

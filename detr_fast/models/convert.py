"""Conversion of checkpoint files between formats."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from detr_fast.checkpoints.architecture import INFERRED, RESNETS, architecture_of
from detr_fast.checkpoints.build import NOT_IN_WEIGHTS, Source, check_consistent, describe
from detr_fast.checkpoints.coco import coco_categories
from detr_fast.checkpoints.formats import (
    Format,
    convert_classes,
    detector_of,
    from_original,
    recognize_format,
    to_original,
)
from detr_fast.checkpoints.huggingface import to_huggingface_config
from detr_fast.checkpoints.state_dict import CheckpointError, read_state_dict, save_state_dict, shorten
from detr_fast.models.detr import DETR
from detr_fast.models.saved_files import find_weights
from detr_fast.nn.feed_forward import Activation

logger = logging.getLogger(__name__)

_IMAGE_SIZES = ("image_size", "max_image_size")  # which no format states


def convert_checkpoint(
    source: str | Path,
    target: str | Path,
    to: Format,
    *,
    num_classes: int | None = None,
    num_heads: int | None = None,
    norm_between_layers: bool | None = None,
    activation: Activation | None = None,
) -> str:
    """Convert the weights of a DETR to another format.

    Args:
        source: As for :meth:`detr_fast.DETR.from_pretrained`: a file, a directory, a name of published weights, a URL
            or the id of a repository on the Hugging Face Hub, in any format that :func:`recognize_format` knows.
        target: A .safetensors file, or any other file for ``torch.save`` (``{"model": weights}``). For the formats of
            Hugging Face, a directory that ``DetrForObjectDetection.from_pretrained`` loads.
        to: The format to write: ``"original"`` (facebookresearch/detr), ``"huggingface"``, ``"huggingface_timm"``,
            ``"mmdet2"`` or ``"mmdet3"``.
        num_classes: 80 or 91 to convert a class head for COCO; None to keep it.
        num_heads: Number of attention heads. This and the two that follow are stated in Hugging Face's configuration;
            None stands for what the configuration of the source states, or for the default of :class:`DETR`.
        norm_between_layers: Whether the decoder normalizes between its layers, ``auxiliary_loss`` of Hugging Face.
        activation: Activation function of the feed-forward networks.

    Returns:
        A message that describes the conversion.

    Raises:
        CheckpointError: The source cannot be read, is not a complete DETR, or cannot be represented in the format; an
            argument contradicts its configuration; or the name of ``target`` does not fit the format, or it
            cannot be written.
        FileNotFoundError: The source does not exist, or cannot be downloaded.
    """
    target = Path(target)
    as_directory = to.startswith("huggingface")
    if as_directory == bool(target.suffix):
        raise CheckpointError(f"{target}: the format {to!r} is written as a {'directory' if as_directory else 'file'}")
    found = find_weights(source)
    given = detector_of(read_state_dict(found.weights))
    state_dict = to_original(given)
    stated = {"num_heads": num_heads, "norm_between_layers": norm_between_layers, "activation": activation}
    arguments = _arguments(state_dict, found, {name: value for name, value in stated.items() if value is not None})
    # A file does not state the number of heads, and any number has the same names.
    _check_complete(state_dict, arguments if as_directory else {**arguments, "num_heads": 1})
    if num_classes is not None:
        state_dict = convert_classes(state_dict, num_classes)
        if num_classes != arguments["num_classes"]:
            arguments |= {"num_classes": num_classes, "categories": coco_categories(contiguous=num_classes == 80)}
    converted = {name: tensor.contiguous() for name, tensor in from_original(state_dict, to).items()}
    config = to_huggingface_config(arguments, timm=to == "huggingface_timm") if as_directory else None
    try:
        _write(converted, target, config)
    except (OSError, RuntimeError, SafetensorError) as error:  # PyTorch's is a RuntimeError
        raise CheckpointError(f"{target} cannot be written: {error}") from error
    if unstated := _unstated(arguments, as_directory=as_directory):
        logger.warning(
            "%s does not state settings of the model; load it with DETR.from_pretrained(%r, %s)",
            target,
            str(target),
            ", ".join(f"{name}={value!r}" for name, value in unstated.items()),
        )
    classes = state_dict["class_embed.bias"].shape[0] - 1
    return f"{source} ({recognize_format(given)}) -> {target} ({to}): {len(converted)} tensors, {classes} classes"


def _write(weights: Mapping[str, Tensor], target: Path, config: Mapping[str, Any] | None) -> None:
    """Write a file, or with a configuration a directory."""
    if config is not None:
        target.mkdir(parents=True, exist_ok=True)
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_state_dict(weights, target / "model.safetensors")
    elif target.suffix == ".safetensors":
        save_state_dict(weights, target)
    else:
        torch.save({"model": dict(weights)}, target)


def _arguments(state_dict: Mapping[str, Tensor], source: Source, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of DETR, with their defaults where neither the weights nor a configuration tell."""
    described = describe(DETR, source.config, state_dict)
    backbone = described.get("backbone")  # None, too, for a module
    implied = architecture_of(state_dict, INFERRED if backbone is None else backbone)
    check_consistent(implied, described, given)
    return {**_defaults(), **described, **given, **implied}


def _defaults() -> dict[str, Any]:
    return {name: parameter.default for name, parameter in signature(DETR).parameters.items()}


def _unstated(arguments: Mapping[str, Any], *, as_directory: bool) -> dict[str, Any]:
    """Return the arguments that change what the network computes, but that what has been written does not tell."""
    defaults = _defaults()
    names = _IMAGE_SIZES if as_directory else (*NOT_IN_WEIGHTS, *_IMAGE_SIZES)
    unstated = {name: arguments[name] for name in names if arguments[name] != defaults[name]}
    if not as_directory and arguments["backbone"] not in RESNETS:  # of these, the weights tell which
        unstated["backbone"] = arguments["backbone"]
    return unstated


def _check_complete(state_dict: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> None:
    """Raise CheckpointError if names are missing or unknown for a DETR of this architecture."""
    try:
        with torch.device("meta"):
            expected = DETR(**arguments).state_dict().keys()
    except ValueError as error:
        raise CheckpointError(f"the configuration of the checkpoint cannot be used: {error}") from error
    missing, unknown = sorted(expected - state_dict.keys()), sorted(state_dict.keys() - expected)
    faults = {"missing from the checkpoint": missing, "not part of a DETR": unknown}
    lines = [f"{len(names)} {kind}: {shorten(names)}" for kind, names in faults.items() if names]
    if lines:
        raise CheckpointError("the checkpoint is not a complete DETR:\n  " + "\n  ".join(lines))

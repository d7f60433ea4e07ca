"""Conversion of checkpoint files between formats."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from detr_fast.checkpoints.architecture import architecture_of
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
from detr_fast.nn.feed_forward import Activation


def convert_checkpoint(
    source: str | Path,
    target: str | Path,
    to: Format,
    *,
    num_classes: int | None = None,
    num_heads: int = 8,
    norm_between_layers: bool = False,
    activation: Activation = "relu",
) -> str:
    """Convert the weights of a DETR to another format.

    Args:
        source: A file as for :func:`read_state_dict`, in any format that :func:`recognize_format` knows.
        target: A .safetensors file, or any other file for ``torch.save`` (``{"model": weights}``). For the formats of
            Hugging Face, a directory that ``DetrForObjectDetection.from_pretrained`` loads.
        to: The format to write: ``"original"`` (facebookresearch/detr), ``"huggingface"``, ``"huggingface_timm"``,
            ``"mmdet2"`` or ``"mmdet3"``.
        num_classes: 80 or 91 to convert a class head for COCO; None to keep it.
        num_heads: Number of attention heads, which the configuration of Hugging Face's formats needs.
        norm_between_layers: Whether the decoder normalizes between its layers, which Hugging Face's configuration
            states as ``auxiliary_loss``.
        activation: Activation function of the feed-forward networks, which Hugging Face's configuration states.

    Returns:
        A message that describes the conversion.

    Raises:
        CheckpointError: The source cannot be read, is not a complete DETR, or cannot be represented in the format; or
            the name of ``target`` does not fit the format.
    """
    target = Path(target)
    as_directory = to.startswith("huggingface")
    if as_directory == bool(target.suffix):
        raise CheckpointError(f"{target}: the format {to!r} is written as a {'directory' if as_directory else 'file'}")
    given = detector_of(read_state_dict(source))
    state_dict = to_original(given)
    _check_complete(state_dict)
    if num_classes is not None:
        state_dict = convert_classes(state_dict, num_classes)
    converted = {name: tensor.contiguous() for name, tensor in from_original(state_dict, to).items()}
    if as_directory:
        config = to_huggingface_config(
            architecture_of(state_dict),
            num_heads,
            timm=to == "huggingface_timm",
            norm_between_layers=norm_between_layers,
            activation=activation,
        )
        target.mkdir(parents=True, exist_ok=True)
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_state_dict(converted, target / "model.safetensors")
    elif target.suffix == ".safetensors":
        save_state_dict(converted, target)
    else:
        torch.save({"model": converted}, target)
    classes = state_dict["class_embed.bias"].shape[0] - 1
    return f"{source} ({recognize_format(given)}) -> {target} ({to}): {len(converted)} tensors, {classes} classes"


def _check_complete(state_dict: dict[str, Tensor]) -> None:
    """Raise CheckpointError if names are missing or unknown for a DETR of this architecture."""
    with torch.device("meta"):
        expected = DETR(**architecture_of(state_dict), num_heads=1).state_dict().keys()
    missing, unknown = sorted(expected - state_dict.keys()), sorted(state_dict.keys() - expected)
    faults = {"missing from the checkpoint": missing, "not part of a DETR": unknown}
    lines = [f"{len(names)} {kind}: {shorten(names)}" for kind, names in faults.items() if names]
    if lines:
        raise CheckpointError("the checkpoint is not a complete DETR:\n  " + "\n  ".join(lines))

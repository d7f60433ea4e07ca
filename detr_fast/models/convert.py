"""Checkpoint files from one format to another."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from detr_fast.checkpoints.architecture import architecture_of, to_huggingface_config
from detr_fast.checkpoints.formats import Format, convert_classes, from_original, recognise, to_original
from detr_fast.checkpoints.state_dict import CheckpointError, read_state_dict, shorten
from detr_fast.models.detr import DETR


def convert_checkpoint(
    source: str | Path, target: str | Path, to: Format, *, num_classes: int | None = None, num_heads: int = 8
) -> str:
    """Convert a DETR's weights; nothing may be missing from them or left over.

    Args:
        source: a file as for :func:`read_state_dict`, in any format that :func:`recognise` knows.
        target: a file, .safetensors or else as the original's (``{"model": weights}``); for Hugging Face's formats a
            directory, which ``DetrForObjectDetection.from_pretrained`` loads.
        to: the format to write.
        num_classes: 80 or 91 to convert a head for COCO, None to leave it.
        num_heads: of the transformer, for the configuration.

    Returns:
        What was done, in a sentence.

    Raises:
        CheckpointError: the source cannot be read, is no DETR's, or has no place in the format; or the name of
            ``target`` doesn't fit the format.
    """
    target = Path(target)
    as_directory = to.startswith("huggingface")
    if as_directory == bool(target.suffix):
        raise CheckpointError(f"{target}: the format {to!r} is written as a {'directory' if as_directory else 'file'}")
    given = read_state_dict(source)
    state_dict = to_original(given)
    _check_complete(state_dict)
    if num_classes is not None:
        state_dict = convert_classes(state_dict, num_classes)
    converted = {name: tensor.contiguous() for name, tensor in from_original(state_dict, to).items()}
    if as_directory:
        config = to_huggingface_config(architecture_of(state_dict), num_heads, timm=to == "huggingface_timm")
        target.mkdir(parents=True, exist_ok=True)
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file(converted, target / "model.safetensors", metadata={"format": "pt"})
    elif target.suffix == ".safetensors":
        save_file(converted, target)
    else:
        torch.save({"model": converted}, target)
    classes = state_dict["class_embed.bias"].shape[0] - 1
    return f"{source} ({recognise(given)}) -> {target} ({to}): {len(converted)} tensors, {classes} classes"


def _check_complete(state_dict: dict[str, Tensor]) -> None:
    """Raise CheckpointError where names are missing or left over for a DETR of this architecture."""
    with torch.device("meta"):
        expected = DETR(**architecture_of(state_dict), num_heads=1).state_dict().keys()
    missing, left = sorted(expected - state_dict.keys()), sorted(state_dict.keys() - expected)
    faults = {"missing from the checkpoint": missing, "without a place in a DETR": left}
    lines = [f"{len(names)} {kind}: {shorten(names)}" for kind, names in faults.items() if names]
    if lines:
        raise CheckpointError("the checkpoint is not whole:\n  " + "\n  ".join(lines))

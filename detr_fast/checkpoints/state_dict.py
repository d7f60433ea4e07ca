"""Reading weights from files nobody vouches for, and loading them so that nothing goes missing unnoticed."""

from __future__ import annotations

import argparse
import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_CLASS_HEAD = ("class_embed.weight", "class_embed.bias")
_LISTED = 10  # names of a kind that an error spells out


class CheckpointError(ValueError):
    """A checkpoint cannot be read or does not fit the model; the message names the cause."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict on the CPU, executing nothing that the file may contain.

    Args:
        path: a .safetensors file, or one written by ``torch.save``: a state dict, or a mapping that holds one under
            ``model`` (as the original's checkpoints do) or ``state_dict``. A prefix ``module.`` on all names, which
            data-parallel training leaves behind, is removed.

    Raises:
        CheckpointError: there is no such file, it is damaged, it needs pickle, or it holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        found = (
            f"a mapping with the keys {shorten(content)}" if isinstance(content, Mapping) else type(content).__name__
        )
        raise CheckpointError(f"{path}: holds no state dict (names of parameters to tensors), but {found}")
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in content.items()}


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load a state dict strictly, but for a class head made for another number of classes.

    Such a head is left as it is in the model, and a warning is logged that says so with both numbers.

    Raises:
        CheckpointError: names are missing or left over, or shapes differ; the model is unchanged then.
    """
    own = model.state_dict()
    given = {
        name: tensor
        for name, tensor in state_dict.items()
        if name in own or not name.endswith(".num_batches_tracked")  # a frozen batch norm counts none
    }
    if _has_other_classes(own, given):
        logger.warning(
            "the checkpoint's class head is for %d classes, the model's for %d: loaded everything but the class head, "
            "which has to be trained",
            given["class_embed.bias"].shape[0] - 1,
            own["class_embed.bias"].shape[0] - 1,
        )
        given |= {name: own[name] for name in _CLASS_HEAD}

    shapes = [
        f"{name} is {list(given[name].shape)}, the model's {list(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    faults = {
        "missing from the checkpoint": [name for name in own if name not in given],
        "unknown to the model": [name for name in given if name not in own],
        "of another shape": shapes,
    }
    if any(faults.values()):
        lines = [f"{len(names)} {kind}: {shorten(names)}" for kind, names in faults.items() if names]
        raise CheckpointError("the checkpoint does not fit the model:\n  " + "\n  ".join(lines))
    model.load_state_dict(given)


def load_backbone_weights(model: nn.Module, path: str | Path) -> None:
    """Load torchvision's weights of a ResNet, without their classifier, into a DETR's backbone.

    Args:
        model: a :class:`DETR` with the same ResNet.
        path: a file as for :func:`read_state_dict`.

    Raises:
        CheckpointError: the file cannot be read, or is another network's.
    """
    weights = {name: tensor for name, tensor in read_state_dict(path).items() if not name.startswith("fc.")}
    load_weights(model.get_submodule("backbone.0.body"), weights)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: cut short or damaged, or no safetensors file: {error}") from error


def _read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the original keeps its arguments in one
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise CheckpointError(
                f"{path}: holds Python objects ({refused[1]}) that only pickle can restore, and pickle runs whatever "
                "code the file contains; save the state dict alone, best as .safetensors"
            ) from error
        raise CheckpointError(f"{path}: cut short or damaged, or not written by torch.save") from error
    except Exception as error:  # torch answers broken files with RuntimeError, EOFError, KeyError, struct.error, ...
        raise CheckpointError(f"{path}: cut short or damaged, or not written by torch.save: {error}") from error


def _has_other_classes(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> bool:
    if not all(name in own and name in given for name in _CLASS_HEAD):
        return False
    same_width = all(given[name].shape[1:] == own[name].shape[1:] for name in _CLASS_HEAD)
    return same_width and given["class_embed.bias"].shape != own["class_embed.bias"].shape


def shorten(names: Any) -> str:
    """Names for a message: the first few of them, and how many more there are."""
    listed = [str(name) for name in names]
    rest = f", and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(listed[:_LISTED]) + rest

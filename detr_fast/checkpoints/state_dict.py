"""Writing state dicts, reading them from untrusted files, and loading them strictly."""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from detr_fast.checkpoints.inert import INERT_GLOBALS
from detr_fast.text import escape

logger = logging.getLogger(__name__)

_CLASS_HEAD = ("class_embed.weight", "class_embed.bias")
_QUERIES = "query_embed.weight"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CHECKSUM = "sha256"  # key of the metadata of a .safetensors file
_LISTED = 10  # number of names that an error lists


class CheckpointError(ValueError):
    """A checkpoint cannot be read or does not fit the model; the message gives the cause."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict to the CPU without executing code from the file.

    Args:
        path: A .safetensors file, or a file written by ``torch.save``. The latter contains a state dict, or a mapping
            with a state dict under ``model`` (as in the checkpoints of facebookresearch/detr) or ``state_dict``. The
            prefix ``module.`` of data-parallel training is removed from the names.

    Returns:
        Tensors by parameter name.

    Raises:
        CheckpointError: The file does not exist, is damaged, needs pickle, or contains no state dict. In a file that
            :func:`save_state_dict` wrote, a single flipped bit is found.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not _is_state_dict(content):
        found = (
            f"a mapping with the keys {shorten(content)}" if isinstance(content, Mapping) else type(content).__name__
        )
        raise CheckpointError(f"{path}: contains no state dict (a mapping of names to tensors), but {found}")
    malformed = [name for name, tensor in content.items() if not _has_own_memory(tensor)]
    if malformed:
        raise CheckpointError(f"{path}: these tensors are larger than their data: {shorten(malformed)}")
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in content.items()}


def save_state_dict(state_dict: Mapping[str, Tensor], path: str | Path) -> None:
    """Write a .safetensors file with a SHA-256 checksum of its tensors, which :func:`read_state_dict` verifies.

    The checksum is an entry of the file's metadata, which other readers of the format ignore. The permissions are those
    of the file that is replaced, or those that the umask leaves to a new one.

    Args:
        state_dict: Tensors by parameter name.
        path: The file.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    path = Path(path)
    path.touch()  # with the permissions of the user's other files, which the writer of the format would restrict
    permissions = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt", _CHECKSUM: _digest(tensors)})
    path.chmod(permissions)


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load a state dict strictly, except for a class head of another number of classes, and another number of queries.

    Such a class head is not loaded. Of the queries as many are loaded as both have, the first ones; the model's others
    are left as they are. A warning with both numbers is logged.

    Args:
        model: A :class:`~detr_fast.models.DETR` or another module.
        state_dict: Tensors by parameter name.

    Raises:
        CheckpointError: Names are missing or unknown, shapes differ, or weights are no floating point numbers; the
            model is unchanged.
    """
    expected = model.state_dict()
    given = _matched(expected, state_dict)
    if _has_other_classes(expected, state_dict):
        logger.warning(
            "the checkpoint's class head is for %d classes, the model's for %d: loaded everything but the class head, "
            "which has to be trained",
            state_dict["class_embed.bias"].shape[0] - 1,
            expected["class_embed.bias"].shape[0] - 1,
        )
    if _has_other_queries(expected, state_dict):
        found, own = len(state_dict[_QUERIES]), len(expected[_QUERIES])
        rest = "dropped the others" if found > own else "the others have to be trained"
        logger.warning(
            "the checkpoint has %d queries, the model %d: loaded the first %d; %s", found, own, min(found, own), rest
        )
    model.load_state_dict(given)


def check_weights(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Check that :func:`load_weights` accepts a state dict; the model may be on the device ``meta``.

    Args:
        model: A module.
        state_dict: Tensors by parameter name.

    Raises:
        CheckpointError: As for :func:`load_weights`.
    """
    _matched(model.state_dict(), state_dict)


def _matched(expected: Mapping[str, Tensor], state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors to load by the names of ``expected``; raise CheckpointError if they do not fit."""
    given = {
        name: tensor
        for name, tensor in state_dict.items()
        if name in expected or not name.endswith(".num_batches_tracked")  # a frozen batch norm does not count batches
    }
    if _has_other_classes(expected, given):
        given |= {name: expected[name] for name in _CLASS_HEAD}
    if _has_other_queries(expected, given):
        queries = expected[_QUERIES].clone()
        common_rows = min(len(queries), len(given[_QUERIES]))
        queries[:common_rows] = given[_QUERIES][:common_rows]
        given[_QUERIES] = queries
    common = [name for name in expected if name in given]
    faults = {
        "missing from the checkpoint": [name for name in expected if name not in given],
        "unknown to the model": [name for name in given if name not in expected],
        "of another shape": [
            f"{name} is {list(given[name].shape)}, the model's {list(expected[name].shape)}"
            for name in common
            if given[name].shape != expected[name].shape
        ],
        "of another dtype": [
            f"{name} is {given[name].dtype}, the model's {expected[name].dtype}"
            for name in common
            if expected[name].is_floating_point() and given[name].dtype not in _DTYPES
        ],
    }
    if any(faults.values()):
        lines = [f"{len(names)} {kind}: {shorten(names)}" for kind, names in faults.items() if names]
        raise CheckpointError("the checkpoint does not fit the model:\n  " + "\n  ".join(lines))
    return given


def load_backbone_weights(model: nn.Module, path: str | Path) -> None:
    """Load torchvision's weights of a ResNet, except for the classifier, into the backbone of a DETR.

    Args:
        model: A :class:`~detr_fast.models.DETR` with the same ResNet.
        path: A file as for :func:`read_state_dict`.

    Raises:
        CheckpointError: The file cannot be read, or contains the weights of another network.
    """
    weights = {name: tensor for name, tensor in read_state_dict(path).items() if not name.startswith("fc.")}
    load_weights(model.get_submodule("backbone.0.body"), weights)


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items())
    )


def _has_own_memory(tensor: Tensor) -> bool:
    """Return whether a tensor is dense, on the CPU, and not an expanded view of fewer values than it seems to have."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            checksum = (file.metadata() or {}).get(_CHECKSUM)
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except Exception as error:  # the exceptions of safetensors for a broken file are not specified
        raise CheckpointError(f"{path}: cut short or damaged, or not a safetensors file: {error}") from error
    if checksum is not None and checksum != _digest(tensors):
        raise CheckpointError(f"{path}: damaged: its tensors do not have the checksum in its metadata")
    return tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 checksum of the names, dtypes, shapes and values of contiguous tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def verify_checksums(path: Path) -> None:
    """Verify the CRC-32 of each part of a zip archive, such as ``torch.save`` writes; ``torch.load`` ignores them.

    Args:
        path: The file. A file that is no zip archive is accepted, since the older format of ``torch.save`` is none.

    Raises:
        CheckpointError: A part of the archive is damaged.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise CheckpointError(f"{path}: compressed, which torch.save does not do")
            damaged = archive.testzip()
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises BadZipFile, NotImplementedError, EOFError, ... for broken files
        raise CheckpointError(f"{path}: cut short or damaged: {error}") from error
    if damaged is not None:
        raise CheckpointError(f"{path}: damaged: its part {damaged} does not have the checksum of the archive")


def _read_torch(path: Path) -> Any:
    verify_checksums(path)
    try:
        with torch.serialization.safe_globals(INERT_GLOBALS):  # beside the weights, of which nothing is executed
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise CheckpointError(
                f"{path}: contains Python objects ({refused[1]}) that only pickle can restore, and pickle executes "
                "code from the file; save the state dict alone, preferably as .safetensors"
            ) from error
        raise CheckpointError(f"{path}: cut short or damaged, or not written by torch.save") from error
    except Exception as error:  # torch raises RuntimeError, EOFError, KeyError, struct.error, ... for broken files
        raise CheckpointError(f"{path}: cut short or damaged, or not written by torch.save: {error}") from error


def _has_other_classes(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> bool:
    if not all(name in expected and name in given for name in _CLASS_HEAD):
        return False
    same_width = all(given[name].shape[1:] == expected[name].shape[1:] for name in _CLASS_HEAD)
    return same_width and given["class_embed.bias"].shape != expected["class_embed.bias"].shape


def _has_other_queries(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> bool:
    if _QUERIES not in expected or _QUERIES not in given or given[_QUERIES].dtype not in _DTYPES:
        return False
    own, found = expected[_QUERIES].shape, given[_QUERIES].shape
    return len(found) == 2 and found[1:] == own[1:] and found != own


def shorten(names: Any) -> str:
    """Format names for a message: the first few of them, and the number of the others."""
    listed = [escape(str(name)) for name in names]
    rest = f", and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(listed[:_LISTED]) + rest

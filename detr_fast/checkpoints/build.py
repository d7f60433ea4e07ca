"""Building a DETR of the architecture of its weights and of its configuration."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from detr_fast.checkpoints.architecture import INFERRED, architecture_of
from detr_fast.checkpoints.formats import to_original
from detr_fast.checkpoints.huggingface import from_huggingface_config, is_huggingface_config
from detr_fast.checkpoints.state_dict import CheckpointError, check_weights, load_weights, read_state_dict, shorten

MAX_CONFIG_BYTES = 10**7  # of config.json, which lists the categories

Model = TypeVar("Model", bound=nn.Module)


class Source(NamedTuple):
    """The weights of a model, and what describes them.

    Attributes:
        weights: A file as for :func:`~detr_fast.checkpoints.state_dict.read_state_dict`.
        config: The content of config.json, of this library or transformers, or arguments of DETR that are known of
            published weights; None if there is no description.
    """

    weights: Path
    config: Mapping[str, Any] | None


# Arguments of DETR in which networks differ that the same weights fit.
NOT_IN_WEIGHTS = (
    "num_heads",
    "norm_between_layers",
    "activation",
    "box_activation",
    "position_temperature",
    "position_normalize",
    "position_scale",
    "position_eps",
    "position_offset",
)


def build_from_weights(build: Callable[..., Model], source: Source, given: Mapping[str, Any]) -> Model:
    """Build a DETR of the architecture of a file's weights, and load them.

    The architecture is compared with the weights before memory is allocated for it.

    Args:
        build: The class :class:`~detr_fast.models.DETR`.
        source: The file of the weights and its configuration.
        given: Arguments of ``build``, which take precedence over the configuration unless the weights contradict them.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: The file cannot be read, or does not contain the weights of a DETR; or the configuration or
            the given arguments are out of range, or contradict the weights.
    """
    path = source.weights
    state_dict = to_original(read_state_dict(path))
    if sum(tensor.nbytes for tensor in state_dict.values()) > path.stat().st_size:
        raise CheckpointError(f"{path}: the weights share memory, which those of a DETR do not")
    described = describe(build, source.config, state_dict)
    implied = architecture_of(state_dict, {**described, **given}.get("backbone", INFERRED))
    check_consistent(implied, described, given)
    if given.get("num_classes", implied["num_classes"]) != implied["num_classes"]:
        described.pop("categories", None)  # they are the names of other classes
    arguments = implied | described | dict(given)
    try:
        with torch.device("meta"):
            check_weights(build(**arguments), state_dict)
        model = build(**arguments)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path}: its configuration cannot be used: {error}") from error
    load_weights(model, state_dict)
    return model.eval()


def read_config(path: Path) -> dict[str, Any]:
    """Read a config.json.

    Args:
        path: The file.

    Raises:
        CheckpointError: The file cannot be read, is larger than 10 MB, or does not contain a JSON object.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path} is larger than {MAX_CONFIG_BYTES // 10**6} MB")
        content = json.loads(path.read_text("utf-8"))
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read or is damaged: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} contains a {type(content).__name__} instead of a JSON object")
    return content


def describe(
    build: Callable[..., Model], config: Mapping[str, Any] | None, state_dict: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Convert the configuration beside weights to arguments of a DETR.

    Args:
        build: The class :class:`~detr_fast.models.DETR`.
        config: As of :class:`Source`.
        state_dict: The weights with the names of facebookresearch/detr.

    Raises:
        CheckpointError: The configuration is malformed, or one of another network.
    """
    if config is None:
        return {}
    if is_huggingface_config(config):
        return from_huggingface_config(config, state_dict)
    unknown = sorted(config.keys() - inspect.signature(build).parameters.keys())
    if unknown:
        raise CheckpointError(f"config.json does not describe a DETR: it has the unknown keys {shorten(unknown)}")
    return dict(config)


def check_consistent(implied: Mapping[str, Any], described: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise CheckpointError if the configuration or the given arguments are those of another network."""
    for name, value in implied.items():
        renumbered = name in ("num_classes", "num_queries") and name in given
        for source, arguments in (("config.json", described), ("the arguments", given)):
            if name == "backbone" or renumbered or name not in arguments:
                continue
            if type(arguments[name]) is not type(value) or arguments[name] != value:
                raise CheckpointError(
                    f"the weights are those of a DETR with {name}={value!r}, but {source} "
                    f"{'says' if source == 'config.json' else 'say'} {arguments[name]!r}"
                )
    for name in NOT_IN_WEIGHTS:
        if name in described and name in given and given[name] != described[name]:
            raise CheckpointError(
                f"the model was trained with {name}={described[name]!r}, but {given[name]!r} is given"
            )
    backbones = [arguments.get("backbone") for arguments in (described, given)]
    if all(isinstance(name, str) for name in backbones) and backbones[0] != backbones[1]:
        raise CheckpointError("the model was trained with backbone={!r}, but {!r} is given".format(*backbones))

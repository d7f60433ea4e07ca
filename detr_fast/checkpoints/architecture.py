"""The architecture of a DETR, inferred from a state dict, and converted from and to Hugging Face configurations."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from detr_fast.checkpoints.formats import depths_of, to_original
from detr_fast.checkpoints.state_dict import CheckpointError, check_weights, load_weights, read_state_dict, shorten

INFERRED = object()
MAX_CONFIG_BYTES = 10**7  # of config.json, which lists the categories

Model = TypeVar("Model", bound=nn.Module)

# Options of transformers, and the arguments of DETR that are the same.
_HUGGINGFACE_NAMES = {
    "d_model": "hidden_dim",
    "encoder_layers": "num_encoder_layers",
    "decoder_layers": "num_decoder_layers",
    "encoder_ffn_dim": "dim_feedforward",
    "num_queries": "num_queries",
    "position_embedding_type": "position_encoding",
    "dropout": "dropout",
    "activation_function": "activation",
    "auxiliary_loss": "norm_between_layers",
}

# Arguments of DETR in which networks differ that the same weights fit.
_NOT_IN_WEIGHTS = (
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

# Number of blocks of each stage, and whether they are bottlenecks.
_RESNETS = {
    "resnet18": ([2, 2, 2, 2], False),
    "resnet34": ([3, 4, 6, 3], False),
    "resnet50": ([3, 4, 6, 3], True),
    "resnet101": ([3, 4, 23, 3], True),
}


def build_from_weights(
    build: Callable[..., Model], path: Path, given: Mapping[str, Any], config: Mapping[str, Any] | None = None
) -> Model:
    """Build a DETR of the architecture of a file's weights, and load them.

    The architecture is compared with the weights before memory is allocated for it.

    Args:
        build: The class :class:`~detr_fast.models.DETR`.
        path: A file as for :func:`read_state_dict`.
        given: Arguments of ``build``, which take precedence over the configuration unless the weights contradict them.
        config: The content of the config.json beside the weights, of this library or transformers; None if there is
            none.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: The file cannot be read, or does not contain the weights of a DETR; or the configuration or
            the given arguments are out of range, or contradict the weights.
    """
    state_dict = to_original(read_state_dict(path))
    if sum(tensor.nbytes for tensor in state_dict.values()) > path.stat().st_size:
        raise CheckpointError(f"{path}: the weights share memory, which those of a DETR do not")
    if config is None:
        described: dict[str, Any] = {}
    elif config.get("model_type") == "detr":  # of transformers
        described = from_huggingface_config(config, state_dict)
    else:
        described = dict(config)
        unknown = sorted(described.keys() - inspect.signature(build).parameters.keys())
        if unknown:
            raise CheckpointError(f"config.json does not describe a DETR: it has the unknown keys {shorten(unknown)}")
    implied = architecture_of(state_dict, {**described, **given}.get("backbone", INFERRED))
    _check_consistent(implied, described, given)
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


def _check_consistent(implied: Mapping[str, Any], described: Mapping[str, Any], given: Mapping[str, Any]) -> None:
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
    for name in _NOT_IN_WEIGHTS:
        if name in described and name in given and given[name] != described[name]:
            raise CheckpointError(
                f"the model was trained with {name}={described[name]!r}, but {given[name]!r} is given"
            )


def architecture_of(state_dict: Mapping[str, Tensor], backbone: Any = INFERRED) -> dict[str, Any]:
    """Infer the arguments of :class:`~detr_fast.models.DETR` from weights.

    Weights do not determine the number of heads, the dropout, the activation functions, the options of the sine
    encoding, and whether the last stage is dilated; these arguments are left out.

    Args:
        state_dict: Weights with the names of facebookresearch/detr.
        backbone: The backbone; :data:`INFERRED` to infer it from the weights.

    Raises:
        CheckpointError: The weights are not those of a DETR, or their backbone is unknown.
    """
    try:
        queries, width = state_dict["query_embed.weight"].shape
        num_classes = state_dict["class_embed.bias"].shape[0] - 1
        hidden = state_dict["transformer.decoder.layers.0.linear1.bias"].shape[0]
    except KeyError as error:
        raise CheckpointError(f"the checkpoint is not one of a DETR: it has no {error}") from None
    except (IndexError, ValueError):
        raise CheckpointError(
            "the checkpoint is not one of a DETR: its embeddings have another number of axes"
        ) from None
    depths = depths_of(state_dict)
    return {
        "num_classes": num_classes,
        "backbone": _backbone_of(state_dict) if backbone is INFERRED else backbone,
        "hidden_dim": width,
        "num_encoder_layers": _count(state_dict, r"transformer\.encoder\.layers\.(\d+)\."),
        "num_decoder_layers": _count(state_dict, r"transformer\.decoder\.layers\.(\d+)\."),
        "dim_feedforward": hidden,
        "num_queries": queries,
        "position_encoding": "learned" if "backbone.1.row_embed.weight" in state_dict else "sine",
        "pre_norm": "transformer.encoder.norm.weight" in state_dict,
        "num_ffn_layers": depths.ffn,
        "num_box_layers": depths.box,
    }


def from_huggingface_config(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Convert a transformers configuration to arguments of ``DETR``.

    Args:
        config: The content of config.json.
        state_dict: Weights with the names of facebookresearch/detr.

    Raises:
        CheckpointError: The configuration is malformed, or that of a network which ``DETR`` cannot represent.
    """
    arguments = {argument: config[name] for name, argument in _HUGGINGFACE_NAMES.items() if name in config}
    num_heads = config.get("encoder_attention_heads", 8)
    resnet = config.get("backbone_config") or {}
    if not isinstance(resnet, Mapping):
        raise CheckpointError(f"backbone_config in config.json must be a mapping, got {resnet!r}")
    through_timm = resnet.get("model_type", "timm_backbone") == "timm_backbone"
    for name, required, value in (
        ("decoder_attention_heads", num_heads, config.get("decoder_attention_heads", num_heads)),
        ("backbone_config.hidden_act", "relu", resnet.get("hidden_act", "relu")),
        ("backbone_config.downsample_in_first_stage", False, resnet.get("downsample_in_first_stage", False)),
        ("backbone_config.downsample_in_bottleneck", False, resnet.get("downsample_in_bottleneck", False)),
    ):
        if value != required:
            raise CheckpointError(f"config.json has {name}={value!r}; only {required!r} is supported")
    if "id2label" in config:
        arguments["categories"] = _categories(config["id2label"], architecture_of(state_dict, "")["num_classes"])
    if through_timm and (config.get("dilation") or resnet.get("output_stride", 32) == 16):
        arguments["backbone"] = _backbone_of(state_dict) + "_dc5"
    return arguments | {"num_heads": num_heads}


def _categories(names: Any, num_classes: int) -> list[dict[str, Any]]:
    """Return the categories of transformers' ``id2label``."""
    if not isinstance(names, Mapping) or names.keys() != {str(label) for label in range(num_classes)}:
        raise CheckpointError(f"id2label in config.json must have the {num_classes} labels of the weights as keys")
    return [{"id": label, "name": names[str(label)]} for label in range(num_classes)]


def to_huggingface_config(
    arguments: Mapping[str, Any], num_heads: int, *, timm: bool, norm_between_layers: bool, activation: str
) -> dict[str, Any]:
    """Build the configuration of transformers' DETR for arguments of :class:`~detr_fast.models.DETR`.

    Args:
        arguments: As :func:`architecture_of` returns them.
        num_heads: Number of attention heads.
        timm: Whether the backbone is timm's ResNet instead of that of transformers.
        norm_between_layers: As for :class:`~detr_fast.models.DETR`.
        activation: As for :class:`~detr_fast.models.DETR`.

    Raises:
        CheckpointError: transformers does not support this architecture.
    """
    backbone = arguments["backbone"]
    if arguments["pre_norm"] or backbone not in _RESNETS:
        raise CheckpointError(
            "the DETR of transformers supports pre_norm=False and the backbones resnet18, resnet34, resnet50 and "
            f"resnet101; this one has pre_norm={arguments['pre_norm']} and backbone={backbone!r}"
        )
    layers = arguments["num_ffn_layers"], arguments["num_box_layers"]
    if layers != (2, 3):
        raise CheckpointError(
            "the DETR of transformers has feed-forward networks of 2 linear layers and a box head of 3; those of this "
            "one have {} and {}".format(*layers)
        )
    depths, bottleneck = _RESNETS[backbone]
    resnet = {
        "model_type": "resnet",
        "depths": depths,
        "hidden_sizes": [width * (4 if bottleneck else 1) for width in (64, 128, 256, 512)],
        "embedding_size": 64,
        "layer_type": "bottleneck" if bottleneck else "basic",
        "out_features": ["stage4"],
    }
    through_timm = {"model_type": "timm_backbone", "backbone": backbone, "out_indices": [4], "features_only": True}
    labels = {str(label): f"LABEL_{label}" for label in range(arguments["num_classes"])}
    return {
        "architectures": ["DetrForObjectDetection"],
        "model_type": "detr",
        "backbone_config": through_timm if timm else resnet,
        "use_timm_backbone": timm,
        "use_pretrained_backbone": False,
        "activation_function": activation,
        "auxiliary_loss": norm_between_layers,  # transformers has no option of its own for it
        "d_model": arguments["hidden_dim"],
        "num_queries": arguments["num_queries"],
        "position_embedding_type": arguments["position_encoding"],
        "encoder_layers": arguments["num_encoder_layers"],
        "decoder_layers": arguments["num_decoder_layers"],
        "encoder_attention_heads": num_heads,
        "decoder_attention_heads": num_heads,
        "encoder_ffn_dim": arguments["dim_feedforward"],
        "decoder_ffn_dim": arguments["dim_feedforward"],
        "id2label": labels,
        "label2id": {name: int(label) for label, name in labels.items()},
    }


def _backbone_of(state_dict: Mapping[str, Tensor]) -> str:
    depths = [_count(state_dict, rf"backbone\.0\.body\.layer{stage}\.(\d+)\.") for stage in range(1, 5)]
    bottleneck = "backbone.0.body.layer1.0.conv3.weight" in state_dict
    for name, built_of in _RESNETS.items():
        if built_of == (depths, bottleneck):
            return name
    kind = "bottleneck" if bottleneck else "basic"
    raise CheckpointError(
        f"the stages of the checkpoint's backbone have {depths} {kind} blocks; known are "
        + ", ".join(f"{name} {depths}" for name, (depths, _) in _RESNETS.items())
        + "; for another backbone, build the DETR and call load_weights"
    )


def _count(state_dict: Mapping[str, Tensor], pattern: str) -> int:
    """Count the distinct numbers that the pattern matches."""
    return len({match[1] for name in state_dict if (match := re.match(pattern, name))})

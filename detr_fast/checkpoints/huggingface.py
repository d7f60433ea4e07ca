"""Configurations of transformers' DETR and Table Transformer, converted from and to arguments of DETR."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from detr_fast.checkpoints.architecture import RESNETS, architecture_of, backbone_of
from detr_fast.checkpoints.state_dict import CheckpointError

# The model types of transformers whose weights DETR loads, and their pre_norm.
_PRE_NORM = {"detr": False, "table-transformer": True}

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

# Arguments of DETR for which transformers has no option, and what it does.
_WITHOUT_OPTION = {
    "num_ffn_layers": 2,
    "num_box_layers": 3,
    "box_activation": "relu",
    "position_temperature": 10000.0,
    "position_normalize": True,
    "position_scale": 2 * math.pi,
    "position_eps": 1e-6,
    "position_offset": 0.0,
}


def is_huggingface_config(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is one of transformers for a network that ``DETR`` represents."""
    kind = config.get("model_type")
    return isinstance(kind, str) and kind in _PRE_NORM


def from_huggingface_config(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Convert a transformers configuration to arguments of ``DETR``.

    Args:
        config: The content of config.json, for which :func:`is_huggingface_config` is true.
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
    stride = resnet.get("output_stride") or 32
    if stride not in (16, 32):
        raise CheckpointError(f"config.json has backbone_config.output_stride={stride!r}; only 16 and 32 are supported")
    if "id2label" in config:
        arguments["categories"] = _categories(config["id2label"], architecture_of(state_dict, "")["num_classes"])
    if through_timm and (config.get("dilation") or stride == 16):
        arguments["backbone"] = backbone_of(state_dict) + "_dc5"
    return arguments | {"num_heads": num_heads, "pre_norm": _PRE_NORM[config["model_type"]]}


def _categories(names: Any, num_classes: int) -> list[dict[str, Any]]:
    """Return the categories of transformers' ``id2label``."""
    if not isinstance(names, Mapping) or names.keys() != {str(label) for label in range(num_classes)}:
        raise CheckpointError(f"id2label in config.json must have the {num_classes} labels of the weights as keys")
    return [{"id": label, "name": names[str(label)]} for label in range(num_classes)]


def to_huggingface_config(arguments: Mapping[str, Any], *, timm: bool) -> dict[str, Any]:
    """Build the configuration of transformers for arguments of :class:`~detr_fast.models.DETR`.

    With ``pre_norm`` it is one of Table Transformer, without it one of DETR.

    Args:
        arguments: All arguments.
        timm: Whether the backbone is timm's ResNet instead of that of transformers.

    Raises:
        CheckpointError: transformers does not support this network.
    """
    resnet = str(arguments["backbone"])
    dilated = timm and resnet.endswith("_dc5")
    resnet = resnet.removesuffix("_dc5") if timm else resnet
    if resnet not in RESNETS:
        raise CheckpointError(
            f"the DETR of transformers is written with the backbones {', '.join(RESNETS)}, and in the format "
            f"'huggingface_timm' with their _dc5; this one has {arguments['backbone']!r}"
        )
    for name, value in _WITHOUT_OPTION.items():
        if arguments[name] != value:
            raise CheckpointError(
                f"the DETR of transformers has {name}={value!r}; this one has {name}={arguments[name]!r}"
            )
    depths, bottleneck = RESNETS[resnet]
    own = {
        "model_type": "resnet",
        "depths": depths,
        "hidden_sizes": [width * (4 if bottleneck else 1) for width in (64, 128, 256, 512)],
        "embedding_size": 64,
        "layer_type": "bottleneck" if bottleneck else "basic",
        "out_features": ["stage4"],
    }
    through_timm = {"model_type": "timm_backbone", "backbone": resnet, "out_indices": [4], "features_only": True}
    if dilated:
        through_timm["output_stride"] = 16
    categories = arguments["categories"] or ()
    labels = {str(label): f"LABEL_{label}" for label in range(arguments["num_classes"])}
    labels |= {str(label): category["name"] for label, category in enumerate(categories)}
    return {
        "architectures": [f"{'TableTransformer' if arguments['pre_norm'] else 'Detr'}ForObjectDetection"],
        "model_type": next(name for name, pre_norm in _PRE_NORM.items() if pre_norm == arguments["pre_norm"]),
        "backbone_config": through_timm if timm else own,
        "use_timm_backbone": timm,
        "use_pretrained_backbone": False,
        "dilation": dilated,
        **{name: arguments[argument] for name, argument in _HUGGINGFACE_NAMES.items()},
        "encoder_attention_heads": arguments["num_heads"],
        "decoder_attention_heads": arguments["num_heads"],
        "decoder_ffn_dim": arguments["dim_feedforward"],
        "id2label": labels,
        "label2id": {name: int(label) for label, name in labels.items()},
    }

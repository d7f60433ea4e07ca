"""What a DETR is built of, read from its state dict or from a configuration of Hugging Face's, and written as one."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from detr_fast.checkpoints.formats import to_original
from detr_fast.checkpoints.state_dict import CheckpointError, load_weights, read_state_dict

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)

# Blocks of each stage, and whether they are bottlenecks.
_RESNETS = {
    "resnet18": ([2, 2, 2, 2], False),
    "resnet34": ([3, 4, 6, 3], False),
    "resnet50": ([3, 4, 6, 3], True),
    "resnet101": ([3, 4, 23, 3], True),
}


def build_from_weights(
    build: Callable[..., Model], path: Path, given: Mapping[str, Any], config: Mapping[str, Any] | None = None
) -> Model:
    """Build the DETR that a file's weights are of, and load them; in evaluation mode.

    Args:
        build: :class:`DETR`.
        path: as for :func:`read_state_dict`.
        given: arguments that go before all else.
        config: :func:`from_huggingface_config`, which goes before what the weights show.

    Raises:
        CheckpointError: the file cannot be read, or is no DETR's.
    """
    state_dict = to_original(read_state_dict(path))
    arguments = architecture_of(state_dict, given.get("backbone"))
    config = dict(config or {})
    if config.pop("dilated", False):
        arguments["backbone"] += "_dc5"
    if given.get("num_classes", arguments["num_classes"]) != len(config.get("categories") or ()):
        config.pop("categories", None)  # they name other classes
    model = build(**(arguments | config | dict(given)))
    load_weights(model, state_dict)
    return model.eval()


def architecture_of(state_dict: Mapping[str, Tensor], backbone: Any = None) -> dict[str, Any]:
    """The arguments of the :class:`DETR` that has these weights.

    What weights don't show is left out: the number of heads, dropout, and whether the last stage is dilated.

    Args:
        state_dict: with the original's names.
        backbone: the network where it is known; None to tell it by the weights.

    Raises:
        CheckpointError: the weights are no DETR's, or of a backbone we don't have.
    """
    try:
        queries, width = state_dict["query_embed.weight"].shape
        num_classes = state_dict["class_embed.bias"].shape[0] - 1
        hidden = state_dict["transformer.decoder.layers.0.linear1.bias"].shape[0]
    except KeyError as error:
        raise CheckpointError(f"the checkpoint is no DETR's: it has no {error}") from None
    return {
        "num_classes": num_classes,
        "backbone": _backbone_of(state_dict) if backbone is None else backbone,
        "hidden_dim": width,
        "num_encoder_layers": _count(state_dict, r"transformer\.encoder\.layers\.(\d+)\."),
        "num_decoder_layers": _count(state_dict, r"transformer\.decoder\.layers\.(\d+)\."),
        "dim_feedforward": hidden,
        "num_queries": queries,
        "position_encoding": "learned" if "backbone.1.row_embed.weight" in state_dict else "sine",
        "pre_norm": "transformer.encoder.norm.weight" in state_dict,
    }


def from_huggingface_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration of transformers' DETR says beyond its weights, as arguments of :class:`DETR`."""
    names = config.get("id2label") or {}
    if config.get("auxiliary_loss"):
        logger.warning(
            "with auxiliary_loss=True transformers' DETR normalises between its decoder layers, which the original's "
            "and this one don't; with weights trained that way their predictions differ"
        )
    return {
        "num_heads": config.get("encoder_attention_heads", 8),
        "dropout": config.get("dropout", 0.1),
        "categories": [{"id": int(label), "name": name} for label, name in names.items()] or None,
        "dilated": bool(config.get("dilation")),
    }


def to_huggingface_config(arguments: Mapping[str, Any], num_heads: int, *, timm: bool) -> dict[str, Any]:
    """A configuration with which transformers builds the DETR of these arguments of :class:`DETR`.

    Raises:
        CheckpointError: transformers has no such DETR.
    """
    backbone = arguments["backbone"]
    if arguments["pre_norm"] or backbone not in _RESNETS:
        raise CheckpointError(
            "Hugging Face's DETR has layers that normalise afterwards, and a ResNet-18, -34, -50 or -101; "
            f"this one has pre_norm={arguments['pre_norm']} and backbone={backbone!r}"
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
        "auxiliary_loss": False,  # with it transformers normalises between decoder layers, another network
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
        f"the checkpoint's backbone has stages of {depths} {kind} blocks; known are "
        + ", ".join(f"{name} {depths}" for name, (depths, _) in _RESNETS.items())
        + "; build the DETR yourself and use load_weights"
    )


def _count(state_dict: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers follow a prefix."""
    return len({match[1] for name in state_dict if (match := re.match(pattern, name))})

"""The architecture of a DETR, inferred from a state dict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from detr_fast.checkpoints.formats import depths_of
from detr_fast.checkpoints.state_dict import CheckpointError

INFERRED = object()

# Number of blocks of each stage, and whether they are bottlenecks.
RESNETS = {
    "resnet18": ([2, 2, 2, 2], False),
    "resnet34": ([3, 4, 6, 3], False),
    "resnet50": ([3, 4, 6, 3], True),
    "resnet101": ([3, 4, 23, 3], True),
}


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
        "backbone": backbone_of(state_dict) if backbone is INFERRED else backbone,
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


def backbone_of(state_dict: Mapping[str, Tensor]) -> str:
    depths = [_count(state_dict, rf"backbone\.0\.body\.layer{stage}\.(\d+)\.") for stage in range(1, 5)]
    bottleneck = "backbone.0.body.layer1.0.conv3.weight" in state_dict
    for name, built_of in RESNETS.items():
        if built_of == (depths, bottleneck):
            return name
    kind = "bottleneck" if bottleneck else "basic"
    raise CheckpointError(
        f"the stages of the checkpoint's backbone have {depths} {kind} blocks; known are "
        + ", ".join(f"{name} {depths}" for name, (depths, _) in RESNETS.items())
        + "; for another backbone, build the DETR and call load_weights"
    )


def _count(state_dict: Mapping[str, Tensor], pattern: str) -> int:
    """Count the distinct numbers that the pattern matches."""
    return len({match[1] for name in state_dict if (match := re.match(pattern, name))})

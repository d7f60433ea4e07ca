"""The sine position embeddings of transformers, computed by ``sine_position_encoding``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from detr_fast import ops

Options = dict[str, Any]


def _from_cell_counts(embedding: Any) -> Options:
    return {
        "num_feats": embedding.num_position_features,
        "temperature": embedding.temperature,
        "normalize": embedding.normalize,
        "scale": embedding.scale,
    }


def _from_cell_centers(embedding: Any) -> Options:
    return _from_cell_counts(embedding) | {"offset": -0.5 if embedding.normalize else 0.0}


def _dab(embedding: Any) -> Options | None:
    if embedding.temperature_height != embedding.temperature_width:
        return None
    return {
        "num_feats": int(embedding.embedding_dim),
        "temperature": embedding.temperature_height,
        "scale": embedding.scale,
    }


def _table_transformer(embedding: Any) -> Options:
    return {
        "num_feats": embedding.embedding_dim,
        "temperature": embedding.temperature,
        "normalize": embedding.normalize,
        "scale": embedding.scale,
    }


def _grounding_dino(embedding: Any) -> Options:
    return {"num_feats": embedding.embedding_dim, "temperature": embedding.temperature, "scale": embedding.scale}


# The embeddings of RT-DETR and related models depend on the shape only and are cached between steps.
OPTIONS: Mapping[str, Callable[[Any], Options | None]] = {
    "DetrSinePositionEmbedding": _from_cell_counts,
    "ConditionalDetrSinePositionEmbedding": _from_cell_counts,
    "DeformableDetrSinePositionEmbedding": _from_cell_centers,
    "Mask2FormerSinePositionEmbedding": _from_cell_counts,
    "DabDetrSinePositionEmbedding": _dab,
    "TableTransformerSinePositionEmbedding": _table_transformer,
    "GroundingDinoSinePositionEmbedding": _grounding_dino,
    "MMGroundingDinoSinePositionEmbedding": _grounding_dino,
}


def encoding_options(module: nn.Module) -> Options | None:
    """Return the options of ``sine_position_encoding`` for a module; None if it is not a supported embedding."""
    read = OPTIONS.get(type(module).__name__)
    return None if read is None else read(module)


class FastEncoding:
    """Replaces the ``forward`` of a sine position embedding.

    Args:
        embedding: The module.
        options: Options of ``sine_position_encoding``.
    """

    def __init__(self, embedding: nn.Module, options: Options) -> None:
        self.embedding = embedding
        self.options = options

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the embedding [B,2F,H,W] from the arguments of the module's ``forward``."""
        forward = type(self.embedding).forward
        if torch.compiler.is_compiling():
            return forward(self.embedding, *args, **kwargs)  # the compiler fuses it
        given = signature(forward).bind(self.embedding, *args, **kwargs).arguments
        if "pixel_values" in given:
            features = given["pixel_values"]
            return self._encode(features.shape, features.device, torch.float32, given["pixel_mask"])
        return self._encode(given["shape"], given["device"], given["dtype"], given.get("mask"))

    def _encode(self, shape: torch.Size, device: torch.device | str, dtype: torch.dtype, mask: Tensor | None) -> Tensor:
        """Encode a feature map of shape [B,d,H,W] with the mask bool [B,H,W], True where valid."""
        batch, _, height, width = shape
        padding = torch.zeros(1, height, width, dtype=torch.bool, device=device) if mask is None else ~mask.bool()
        encoding = ops.sine_position_encoding(padding, dtype=dtype, layout="blc", **self.options)
        return encoding.unflatten(1, (height, width)).permute(0, 3, 1, 2).expand(batch, -1, -1, -1)

"""The sine position embeddings of transformers, computed by ``sine_position_encoding``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from detr_fast import ops

Options = dict[str, Any]


FEATURES = ("num_position_features", "num_pos_feats", "embedding_dim")  # the same setting in different releases


def _num_feats(embedding: Any) -> int:
    found = next((name for name in FEATURES if hasattr(embedding, name)), None)
    if found is None:
        raise AttributeError(f"{type(embedding).__name__} has none of the attributes {', '.join(FEATURES)}")
    return int(getattr(embedding, found))


def _from_cell_counts(embedding: Any) -> Options:
    return {
        "num_feats": _num_feats(embedding),
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
        "num_feats": _num_feats(embedding),
        "temperature": embedding.temperature_height,
        "scale": embedding.scale,
    }


def _grounding_dino(embedding: Any) -> Options:
    return {"num_feats": _num_feats(embedding), "temperature": embedding.temperature, "scale": embedding.scale}


# The embeddings of RT-DETR and related models depend on the shape only and are cached between steps.
OPTIONS: Mapping[str, Callable[[Any], Options | None]] = {
    "DetrSinePositionEmbedding": _from_cell_counts,
    "ConditionalDetrSinePositionEmbedding": _from_cell_counts,
    "DeformableDetrSinePositionEmbedding": _from_cell_centers,
    "Mask2FormerSinePositionEmbedding": _from_cell_counts,
    "DabDetrSinePositionEmbedding": _dab,
    "TableTransformerSinePositionEmbedding": _from_cell_counts,
    "GroundingDinoSinePositionEmbedding": _grounding_dino,
    "MMGroundingDinoSinePositionEmbedding": _grounding_dino,
}


def encoding_options(module: nn.Module) -> Options | None:
    """Return the options of ``sine_position_encoding`` for a module; None if it is not a supported embedding.

    Raises:
        AttributeError: This release stores the settings of the embedding under unknown names.
    """
    read = OPTIONS.get(type(module).__name__)
    return None if read is None else read(module)


def is_flat(module: nn.Module) -> bool:
    """Return whether an embedding returns the cells in one dimension, [B,HW,2F], as some releases do."""
    names = signature(type(module).forward).parameters
    cells = torch.zeros(1, 1, 1, 1)
    mask = torch.ones(1, 1, 1, dtype=torch.bool)
    given = (cells, mask) if "pixel_values" in names else (cells.shape, cells.device, cells.dtype, mask)
    return bool(type(module).forward(module, *given).dim() == 3)


class FastEncoding:
    """Replaces the ``forward`` of a sine position embedding.

    Args:
        embedding: The module.
        options: Options of ``sine_position_encoding``.
    """

    def __init__(self, embedding: nn.Module, options: Options) -> None:
        self.embedding = embedding
        self.options = options
        self.flat = is_flat(embedding)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the embedding, [B,2F,H,W] or [B,HW,2F], from the arguments of the module's ``forward``."""
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
        if self.flat:
            return encoding.expand(batch, -1, -1)
        return encoding.unflatten(1, (height, width)).permute(0, 3, 1, 2).expand(batch, -1, -1, -1)

"""What a DETR says about arguments it cannot work with; all of it in ValueErrors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def check_integers(**arguments: tuple[Any, int]) -> None:
    """Raise where an argument, given as (value, least value), is no integer or too small."""
    for name, (value, least) in arguments.items():
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def check_categories(categories: Sequence[Mapping[str, Any]] | None, num_classes: int) -> list[dict[str, Any]] | None:
    """The categories as plain dictionaries of ``id`` and ``name``; raise where there are more than classes."""
    if categories is None:
        return None
    if len(categories) > num_classes:
        raise ValueError(f"{len(categories)} categories do not fit into {num_classes} classes; raise num_classes")
    for label, category in enumerate(categories):
        if not {"id", "name"} <= category.keys():
            raise ValueError(f"category {label} needs an id and a name, got {dict(category)}")
    return [{"id": int(category["id"]), "name": str(category["name"])} for category in categories]


def check_batch(images: Tensor, mask: Tensor | None) -> None:
    """Raise where images are not floating point [B,3,H,W], or the mask is not bool [B,H,W]."""
    if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"images must be floating point [B,3,H,W], got {images.dtype} {list(images.shape)}; "
            "predict takes pictures as they are"
        )
    expected = [images.shape[0], *images.shape[2:]]
    if mask is not None and (mask.dtype != torch.bool or list(mask.shape) != expected):
        raise ValueError(f"mask must be bool {expected}, True = padding; got {mask.dtype} {list(mask.shape)}")

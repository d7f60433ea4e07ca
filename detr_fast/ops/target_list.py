"""Targets as users have them: a list with a mapping for each image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


def read_target_list(targets: Iterable[Mapping[str, Any]]) -> list[tuple[Tensor, Tensor]]:
    """Return the labels, int64 [t], and boxes, float32 [t,4], of each image.

    Args:
        targets: as for :meth:`Targets.from_list`.

    Raises:
        TypeError: an argument is of another type.
        ValueError: a key is missing, a shape does not fit, or boxes require grad.
    """
    if isinstance(targets, Mapping | Tensor) or not isinstance(targets, Iterable):
        raise TypeError(f"targets must be a list with a mapping for each image, got {type(targets).__name__}")
    return [_read_target(target, image) for image, target in enumerate(targets)]


def _read_target(target: Mapping[str, Any], image: int) -> tuple[Tensor, Tensor]:
    if not isinstance(target, Mapping):
        raise TypeError(
            f"image {image}: the target must be a mapping with labels and boxes, got {type(target).__name__}"
        )
    missing = [key for key in ("labels", "boxes") if key not in target]
    if missing:
        hint = "; rename class_labels to labels" if "class_labels" in target else ""
        raise ValueError(f"image {image}: the target has no {' and no '.join(missing)}, only {list(target)}{hint}")
    labels, boxes = (_as_tensor(target[key], f"image {image}: the {key}") for key in ("labels", "boxes"))
    if not labels.numel() and not boxes.numel():  # torch.tensor([]) is float32 [0]
        return labels.new_zeros(0, dtype=torch.int64), boxes.new_zeros(0, 4, dtype=torch.float32)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool or labels.dim() != 1:
        raise ValueError(f"image {image}: labels must be integers [t], got {labels.dtype} {list(labels.shape)}")
    if boxes.shape != (len(labels), 4):
        raise ValueError(
            f"image {image}: {len(labels)} labels need boxes of shape [{len(labels)}, 4], got {list(boxes.shape)}"
        )
    if boxes.requires_grad:
        raise ValueError(f"image {image}: the boxes require grad, but targets are constants; detach() them")
    return labels.to(torch.int64), boxes.to(torch.float32)


def _as_tensor(values: Any, what: str) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{what} are no array of numbers: {error}") from None

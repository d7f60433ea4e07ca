"""Checks of the arguments that ops have in common."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from detr_fast.ops.targets import Targets


def as_integer(name: str, value: Any) -> int:
    """Return an integer of any type as an int.

    Raises:
        TypeError: ``value`` is no integer, such as 2.0.
    """
    if isinstance(value, int):
        return value
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None


def check_tensor(name: str, value: Any) -> None:
    """Raise TypeError where ``value`` is no tensor, such as an array."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(value).__name__}; torch.as_tensor converts arrays and lists"
        )


def check_divisor(name: str, value: Any) -> None:
    """Raise an error where ``value`` is not what a loss may be divided by: a number, a constant scalar, or None."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must be one number, got a tensor {list(value.shape)}")
        if value.requires_grad:
            raise ValueError(f"{name} requires grad, but the losses are not differentiable in it; pass {name}.detach()")
    elif not (value is None or isinstance(value, (int, float, torch.SymInt)) or hasattr(value, "__float__")):
        raise TypeError(f"{name} must be a number or a tensor, got {value!r}")


def check_predictions(logits: Tensor, boxes: Tensor, targets: Targets, *, softmax: bool) -> None:
    """Raise an error where the types or shapes of predictions and targets, or the labels, do not fit.

    Raises:
        TypeError: an argument is of another type.
        ValueError: a shape, a dtype, a device or a label does not fit.
    """
    check_tensor("logits", logits)
    check_tensor("boxes", boxes)
    if not isinstance(targets, Targets):
        raise TypeError(
            f"targets must be Targets, got {type(targets).__name__}; build them with Targets.from_list(...)"
        )
    if logits.dim() != 4 or boxes.shape != (*logits.shape[:3], 4):
        raise ValueError(
            f"expected logits [L,B,Q,C] and boxes [L,B,Q,4], got {list(logits.shape)} and {list(boxes.shape)}; "
            "the predictions of a single layer become those of L=1 by x[None]"
        )
    if not (logits.is_floating_point() and boxes.is_floating_point()):
        raise ValueError(f"logits and boxes must be floating point, got {logits.dtype} and {boxes.dtype}")
    if logits.shape[1] != targets.num_images:
        raise ValueError(f"predictions are for {logits.shape[1]} images, targets for {targets.num_images}")
    if logits.device != targets.labels.device:
        raise ValueError(
            f"predictions are on {logits.device}, targets on {targets.labels.device}; "
            "move the targets with targets.to(device)"
        )
    targets.check_labels(logits.shape[3] - softmax, no_object=softmax)

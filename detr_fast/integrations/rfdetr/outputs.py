"""Outputs and targets of RF-DETR in the form of the ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detr_fast.ops.targets import Targets

Output = dict[str, Any]


def is_plain_detection(layers: Sequence[Output], targets: Sequence[Output]) -> bool:
    """Return whether only boxes and classes are matched, and all layers have the same shape."""
    extra = {"masks", "keypoints", "valid"}
    shapes = {layer["pred_logits"].shape for layer in layers}
    return bool(targets) and not any(extra & target.keys() for target in targets) and len(shapes) == 1


def pack_targets(targets: Sequence[Output]) -> Targets | None:
    """Pack the targets of a batch; None if they are invalid, which RF-DETR reports."""
    try:
        return Targets.from_list(targets)
    except ValueError:
        return None


def stack_layers(layers: Sequence[Output]) -> tuple[Tensor, Tensor]:
    """Stack the outputs of L layers to logits [L,B,Q,C] and boxes [L,B,Q,4]."""
    return torch.stack([layer["pred_logits"] for layer in layers]), torch.stack([x["pred_boxes"] for x in layers])


def detections(layer: Output) -> Output:
    """Return the logits and the boxes of a layer."""
    return {name: layer[name] for name in ("pred_logits", "pred_boxes")}


def num_queries(layer: Output) -> int:
    """Return the number of queries of all groups."""
    return int(layer["pred_logits"].shape[1])


def given(argument: Any) -> list[Any]:
    """Return the last argument of a call as a list, which is empty if it is None; older releases do not take it."""
    return [] if argument is None else [argument]

"""The L1 distance of all pairs of boxes."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.cases.pairwise_box_iou import SIZES, SMALL, Inputs, evaluate, random_boxes
from benchmarks.registry import Case, Implementation, backends, default_backend
from detr_fast import ops

__all__ = ["SIZES", "SMALL", "case"]


def case(device: torch.device, images: int, num_boxes1: int, num_boxes2: int, gradients: bool) -> Case:
    def compute(inputs: Inputs, backend: str) -> Inputs:
        return evaluate(partial(ops.pairwise_box_l1, backend=backend), inputs, gradients)

    def cdist(inputs: Inputs) -> Implementation:
        return Implementation(partial(evaluate, partial(torch.cdist, p=1), inputs, gradients))

    return Case(
        f"L1{' and gradients' if gradients else ''}, {images} x {num_boxes1} x {num_boxes2} boxes",
        default_backend("pairwise_box_l1", device),
        lambda: random_boxes(device, images, num_boxes1, num_boxes2),
        {**backends("pairwise_box_l1", device, compute), "torch.cdist": cdist},
        lambda inputs: compute(tuple(boxes.double() for boxes in inputs), "reference"),
        rtol=1e-4 if gradients else 0,
    )

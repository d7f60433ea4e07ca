"""The L1 distance of all pairs of boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.cases.pairwise_box_iou import SIZES, SMALL, Inputs, random_boxes  # noqa: F401
from benchmarks.registry import Case, Implementation, backends, default_backend
from detr_fast import ops


def case(device: torch.device, images: int, num_boxes1: int, num_boxes2: int) -> Case:
    def compute(inputs: Inputs, backend: str) -> Tensor:
        return ops.pairwise_box_l1(*inputs, backend=backend)

    def cdist(inputs: Inputs) -> Implementation:
        return Implementation(lambda: torch.cdist(*inputs, p=1))

    return Case(
        f"L1 of {images} x {num_boxes1} x {num_boxes2} boxes",
        default_backend("pairwise_box_l1", device),
        lambda: random_boxes(device, images, num_boxes1, num_boxes2),
        {**backends("pairwise_box_l1", device, compute), "torch.cdist": cdist},
        lambda inputs: compute(tuple(boxes.double() for boxes in inputs), "reference"),
        rtol=0,
    )

"""The generalized IoU of all pairs of boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.registry import Case, backends, default_backend
from detr_fast import ops

SIZES = [(16, 100, 20), (16, 300, 20), (16, 900, 63)]
SMALL = [(2, 5, 3)]

Inputs = tuple[Tensor, Tensor]


def case(device: torch.device, images: int, num_boxes1: int, num_boxes2: int) -> Case:
    def inputs() -> Inputs:
        return random_boxes(device, images, num_boxes1, num_boxes2)

    def compute(inputs: Inputs, backend: str) -> Tensor:
        return ops.pairwise_box_iou(*inputs, kind="giou", box_format="cxcywh", backend=backend)

    return Case(
        f"GIoU of {images} x {num_boxes1} x {num_boxes2} boxes",
        default_backend("pairwise_box_iou", device),
        inputs,
        backends("pairwise_box_iou", device, compute),
        lambda inputs: compute(tuple(boxes.double() for boxes in inputs), "reference"),
        rtol=0,
    )


def random_boxes(device: torch.device, images: int, *counts: int) -> Inputs:
    """Draw boxes of [0,1] for each image and count."""
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.rand(images, count, 4, generator=generator) * 0.4 + 0.2 for count in counts)
    boxes1, boxes2 = (boxes.to(device) for boxes in drawn)
    return boxes1, boxes2

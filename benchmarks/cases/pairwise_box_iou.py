"""The generalized IoU of all pairs of boxes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.registry import Case, backends, default_backend, with_gradients
from detr_fast import ops

SIZES = [(16, 100, 20, False), (16, 300, 20, False), (16, 900, 63, False), (16, 300, 20, True)]
SMALL = [(2, 5, 3, False), (2, 5, 3, True)]

Inputs = tuple[Tensor, ...]


def case(device: torch.device, images: int, num_boxes1: int, num_boxes2: int, gradients: bool) -> Case:
    def compute(inputs: Inputs, backend: str) -> Inputs:
        giou = partial(ops.pairwise_box_iou, kind="giou", box_format="cxcywh", backend=backend)
        return evaluate(giou, inputs, gradients)

    return Case(
        f"GIoU{' and gradients' if gradients else ''}, {images} x {num_boxes1} x {num_boxes2} boxes",
        default_backend("pairwise_box_iou", device),
        lambda: random_boxes(device, images, num_boxes1, num_boxes2),
        backends("pairwise_box_iou", device, compute),
        lambda inputs: compute(tuple(boxes.double() for boxes in inputs), "reference"),
        rtol=1e-4 if gradients else 0,
    )


def random_boxes(device: torch.device, images: int, *counts: int) -> Inputs:
    """Draw boxes for each image, [images, count, 4] for each count."""
    generator = torch.Generator().manual_seed(0)
    return tuple((torch.rand(images, count, 4, generator=generator) * 0.4 + 0.2).to(device) for count in counts)


def evaluate(pairwise: Callable[[Tensor, Tensor], Tensor], inputs: Inputs, gradients: bool) -> Inputs:
    """Return the values of all pairs, and the gradients of their sum."""
    return with_gradients(lambda *boxes: (pairwise(*boxes),), inputs) if gradients else (pairwise(*inputs),)

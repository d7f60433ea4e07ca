"""The losses of all layers and their gradients, for given matches."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.inputs import coco_like_targets, predictions
from benchmarks.registry import Case, Goal, backends, default_backend, with_gradients
from detr_fast import LossWeights, Targets, ops

SIZES = [
    *(("detr", 6, images, queries) for images, queries in ((2, 100), (16, 100), (16, 300))),
    *((preset, 6, 16, 300) for preset in ("deformable", "rt_detr", "lw_detr")),
]
SMALL = [("detr", 1, 2, 20), ("deformable", 1, 2, 20)]

Inputs = tuple[Tensor, Tensor, Targets, Tensor]


def case(device: torch.device, preset: str, layers: int, images: int, queries: int) -> Case:
    weights = getattr(LossWeights, preset)()

    def inputs() -> Inputs:
        logits, boxes = predictions(layers, images, queries, 92, torch.device("cpu"))
        targets = coco_like_targets(images)
        index = ops.batch_linear_sum_assignment(ops.match_cost(logits, boxes, targets), targets)
        return logits.to(device), boxes.to(device), targets.to(device), index.to(device)

    def compute(inputs: Inputs, backend: str) -> tuple[Tensor, ...]:
        logits, boxes, targets, index = inputs

        def losses(logits: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
            total, terms = ops.weighted_set_loss(logits, boxes, targets, index, weights=weights, backend=backend)
            return total, *terms.values()

        return with_gradients(losses, (logits, boxes))

    def expected(inputs: Inputs) -> tuple[Tensor, ...]:
        logits, boxes, targets, index = inputs
        return compute((logits.double(), boxes.double(), targets, index), "reference")

    return Case(
        f"losses of {preset} and gradients, {layers} layers, {images} images, {queries} queries, 92 logits",
        default_backend("set_loss", device),
        inputs,
        backends("set_loss", device, compute),
        expected,
        rtol=1e-4,
        atol=1e-6,
        goals=(Goal("ratio", 1, "reference"),),
        has_memory=True,
    )

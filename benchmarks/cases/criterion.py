"""Matcher and criterion, from predictions to gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import detr_idiom
from benchmarks.host_libraries import rfdetr_loss, transformers_loss
from benchmarks.inputs import as_dicts, coco_like_targets, predictions
from benchmarks.registry import Case, Goal, Implementation, with_gradients
from detr_fast import LossWeights, MatchWeights, SetCriterion, Targets, use_backend

# RF-DETR sums its losses before they are weighted.
RF_DETR = (
    MatchWeights(2, 5, 2, class_cost="focal", focal_alpha=0.25, focal_eps=0.0),
    LossWeights(1, 1, 1, class_loss="ia_bce", focal_alpha=0.25),
)
SIZES = [
    *(("detr", 6, images, queries) for images, queries in ((2, 100), (16, 100), (8, 300), (16, 300))),
    ("rf_detr", 6, 16, 300),
]
SMALL = [("detr", 6, 2, 12), ("rf_detr", 6, 2, 12)]

Inputs = tuple[Tensor, Tensor, Targets]
Loss = Callable[[Tensor, Tensor], Tensor]  # from logits and boxes


def case(device: torch.device, losses: str, layers: int, images: int, queries: int) -> Case:
    is_detr = losses == "detr"

    def inputs() -> Inputs:
        predicted = predictions(layers, images, queries, 92 if is_detr else 91, device)
        return *predicted, coco_like_targets(images).to(device)

    def detr_fast(inputs: Inputs) -> Implementation:
        criterion = SetCriterion() if is_detr else SetCriterion(*RF_DETR)
        return gradient_step(inputs, lambda logits, boxes: criterion(logits, boxes, inputs[2]).total)

    def facebookresearch(inputs: Inputs) -> Implementation:
        return gradient_step(inputs, lambda logits, boxes: detr_idiom.total_loss(logits, boxes, inputs[2]))

    def transformers(inputs: Inputs) -> Implementation:
        loss = transformers_loss("DETR", as_dicts(inputs[2], "class_labels"), device)
        return gradient_step(inputs, loss.host_library)

    def rf_detr(inputs: Inputs) -> Implementation:
        return gradient_step(inputs, rfdetr_loss(as_dicts(inputs[2])).host_library)

    def expected(inputs: Inputs) -> tuple[Tensor, ...]:
        logits, boxes, targets = inputs
        with use_backend(match_cost="reference", set_loss="reference"):
            return detr_fast((logits.double(), boxes.double(), targets)).call()

    peers = (
        {"facebookresearch/detr": facebookresearch, "transformers": transformers} if is_detr else {"RF-DETR": rf_detr}
    )
    faster = {"transformers": 10, "RF-DETR": 4} if device.type == "cuda" else dict.fromkeys(peers, 4)
    return Case(
        f"losses of {losses}, {layers} layers, {images} images, {queries} queries",
        "detr_fast",
        inputs,
        {"detr_fast": detr_fast, **peers},
        expected,
        rtol=1e-4,
        atol=1e-6,
        goals=tuple(Goal("ratio", bound, peer) for peer, bound in faster.items() if peer in peers),
        has_memory=True,
    )


def gradient_step(inputs: Inputs, loss: Loss) -> Implementation:
    """Return the step that computes a loss and the gradients of logits and boxes."""
    return Implementation(lambda: with_gradients(lambda *leaves: (loss(*leaves),), inputs[:2]))

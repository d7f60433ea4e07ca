"""Matcher and criterion of other libraries' detectors, from predictions to gradients, accelerated and not."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch

from benchmarks.cases.criterion import Inputs, gradient_step
from benchmarks.host_libraries import NUM_LAYERS, NUM_LOGITS, label_key, losses
from benchmarks.inputs import as_dicts, coco_like_targets, predictions
from benchmarks.registry import Case, Goal, Implementation

SIZES = [(family, images, queries) for family, queries, images in product(NUM_LOGITS, (100, 300), (2, 8, 16, 32))]
SMALL = [(family, 2, 12) for family in NUM_LOGITS]


def case(device: torch.device, family: str, images: int, queries: int) -> Case:
    num_classes = {"RT-DETR": 80}.get(family, 91)

    def inputs() -> tuple[Inputs, Any]:
        targets = coco_like_targets(images, num_classes).to(device)
        found = losses(family, as_dicts(targets, label_key(family)), device)
        return (*predictions(NUM_LAYERS[family], images, queries, NUM_LOGITS[family], device), targets), found

    def accelerated(inputs: tuple[Inputs, Any]) -> Implementation:
        return gradient_step(inputs[0], inputs[1].accelerated)

    def host_library(inputs: tuple[Inputs, Any]) -> Implementation:
        return gradient_step(inputs[0], inputs[1].host_library)

    return Case(
        f"{family}, {images} images, {queries} queries",
        "accelerated",
        inputs,
        {"accelerated": accelerated, "host library": host_library},
        lambda inputs: host_library(inputs).call(),
        rtol=1e-4,
        atol=1e-6,
        goals=(Goal("ratio", 3, "host library"),) if device.type == "cpu" else (),
        has_memory=True,
    )

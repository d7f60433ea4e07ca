"""Matching costs as a detector's training meets them, made by the real cost function from made-up predictions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from detr_fast import Targets, ops

NUM_CLASSES = 91
MEAN_TARGETS = 9  # an image, roughly COCO's
MAX_TARGETS = 63


def random_sizes(images: int, rng: np.random.Generator) -> list[int]:
    """How many targets each image has: many have few, a few have many."""
    return np.minimum(rng.geometric(1 / MEAN_TARGETS, images), MAX_TARGETS).tolist()


def random_targets(sizes: list[int], generator: torch.Generator) -> Targets:
    def one(size: int) -> dict[str, Tensor]:
        centre, side = torch.rand(size, 2, generator=generator), torch.rand(size, 2, generator=generator) ** 2
        return {
            "labels": torch.randint(NUM_CLASSES, (size,), generator=generator),
            "boxes": torch.cat([0.1 + 0.8 * centre, 0.02 + 0.5 * side], 1),
        }

    return Targets.from_list([one(size) for size in sizes])


def untrained(layers: int, queries: int, targets: Targets, generator: torch.Generator) -> Tensor:
    """Every query predicts much the same, so that targets contend for the same few: [L,T,Q]."""
    shape = (layers, targets.num_images, queries)
    logits = 0.2 * torch.randn(*shape, NUM_CLASSES + 1, generator=generator)
    boxes = (0.2 * torch.randn(*shape, 4, generator=generator)).sigmoid()
    return ops.match_cost(logits, boxes, targets)


def trained(layers: int, queries: int, targets: Targets, generator: torch.Generator) -> Tensor:
    """A few queries lie near each target and know its class; the others lie anywhere: [L,T,Q]."""
    shape = (layers, targets.num_images, queries)
    logits = torch.randn(*shape, NUM_CLASSES + 1, generator=generator)
    logits[..., -1] += 6
    boxes = torch.randn(*shape, 4, generator=generator).sigmoid()
    start = 0
    for image, size in enumerate(targets.sizes):
        order = torch.randperm(queries, generator=generator)[: 3 * size]
        target = start + torch.arange(3 * size)[: len(order)] % max(size, 1)
        noise = 0.02 * torch.randn(layers, len(order), 4, generator=generator)
        boxes[:, image, order] = (targets.boxes[target] + noise).clamp(0.01, 0.99)
        logits[:, image, order, targets.labels[target]] += 6
        start += size
    return ops.match_cost(logits, boxes, targets)


FAMILIES = {"untrained": untrained, "trained": trained}


def training_step(family: str, layers: int, images: int, queries: int, seed: int = 0) -> tuple[Tensor, list[int]]:
    """The costs [L,T,Q] of one step, and how many targets each image has."""
    generator = torch.Generator().manual_seed(seed)
    targets = random_targets(random_sizes(images, np.random.default_rng(seed)), generator)
    return FAMILIES[family](layers, queries, targets, generator), targets.sizes

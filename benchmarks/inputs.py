"""Inputs like those of a detector's training: targets in COCO's numbers, predictions, and matching costs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detr_fast import Targets, ops

NUM_CLASSES = 91
MAX_TARGETS = 63  # of an image


def coco_like_sizes(images: int, generator: torch.Generator) -> list[int]:
    """Draw the number of targets of each image: about seven, for some images none, for some many."""
    return torch.empty(images).exponential_(1 / 7.3, generator=generator).int().clamp(max=MAX_TARGETS).tolist()


def random_targets(sizes: Sequence[int], generator: torch.Generator, num_classes: int = NUM_CLASSES) -> Targets:
    """Draw targets with boxes of all sizes, the small ones more often."""

    def one(size: int) -> dict[str, Tensor]:
        center, side = torch.rand(size, 2, generator=generator), torch.rand(size, 2, generator=generator) ** 2
        labels = torch.randint(num_classes, (size,), generator=generator)
        return {"labels": labels, "boxes": torch.cat([0.1 + 0.8 * center, 0.02 + 0.5 * side], 1)}

    return Targets.from_list([one(size) for size in sizes])


def coco_like_targets(images: int, num_classes: int = NUM_CLASSES, seed: int = 0) -> Targets:
    """Draw the targets of a batch, in COCO's numbers."""
    generator = torch.Generator().manual_seed(seed)
    return random_targets(coco_like_sizes(images, generator), generator, num_classes)


def as_dicts(targets: Targets, labels: str = "labels") -> list[dict[str, Tensor]]:
    """Return a mapping for each image; ``labels`` is the key of its labels."""
    split = zip(targets.labels.split(targets.sizes), targets.boxes.split(targets.sizes), strict=True)
    return [{labels: of_image, "boxes": boxes} for of_image, boxes in split]


def predictions(
    layers: int, images: int, queries: int, num_logits: int, device: torch.device, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Draw logits [L,B,Q,C] and boxes [L,B,Q,4]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (layers, images, queries)
    logits = torch.randn(*shape, num_logits, generator=generator)
    return logits.to(device), (torch.rand(*shape, 4, generator=generator) * 0.4 + 0.2).to(device)


def untrained_cost(layers: int, queries: int, targets: Targets, generator: torch.Generator) -> Tensor:
    """Return the cost [L,T,Q] where all queries predict much the same, so that targets compete for a few of them."""
    shape = (layers, targets.num_images, queries)
    logits = 0.2 * torch.randn(*shape, NUM_CLASSES + 1, generator=generator)
    boxes = (0.2 * torch.randn(*shape, 4, generator=generator)).sigmoid()
    return ops.match_cost(logits, boxes, targets)


def trained_cost(layers: int, queries: int, targets: Targets, generator: torch.Generator) -> Tensor:
    """Return the cost [L,T,Q] where three queries lie near each target and predict its class."""
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


COSTS = {"untrained": untrained_cost, "trained": trained_cost}

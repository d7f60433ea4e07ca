"""The matcher: the matching cost and the assignment of all layers."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import detr_idiom
from benchmarks.inputs import as_dicts, coco_like_targets, predictions
from benchmarks.peers import import_peer
from benchmarks.registry import Case, Goal, Implementation
from detr_fast import HungarianMatcher, Targets, use_backend

SIZES = [(6, 2, 100), (6, 16, 100), (6, 16, 300)]
SMALL = [(2, 3, 12)]

Inputs = tuple[Tensor, Tensor, Targets]


def case(device: torch.device, layers: int, images: int, queries: int) -> Case:
    def inputs() -> Inputs:
        return *predictions(layers, images, queries, 92, device), coco_like_targets(images).to(device)

    def expected(inputs: Inputs) -> Tensor:
        logits, boxes, targets = inputs
        with use_backend(match_cost="reference", batch_linear_sum_assignment="scipy"):
            return HungarianMatcher()(logits.double(), boxes.double(), targets)

    return Case(
        f"{layers} layers, {images} images, {queries} queries",
        "detr_fast",
        inputs,
        {"detr_fast": detr_fast, "facebookresearch/detr": facebookresearch, "transformers": transformers},
        expected,
        rtol=0,
        atol=0,
        goals=(Goal("ratio", 4, "facebookresearch/detr"), Goal("ratio", 4, "transformers")),
    )


def detr_fast(inputs: Inputs) -> Implementation:
    matcher = HungarianMatcher()
    return Implementation(lambda: matcher(*inputs))


def facebookresearch(inputs: Inputs) -> Implementation:
    return Implementation(lambda: detr_idiom.match(*inputs), lambda layers: as_index(layers, inputs[2]))


def transformers(inputs: Inputs) -> Implementation:
    """Prepare the matcher of transformers' DETR, called for each layer as its criterion does."""
    module = import_peer("transformers", "transformers.loss.loss_for_object_detection")
    matcher = module.HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    truth = as_dicts(inputs[2], "class_labels")
    layers = [{"logits": x, "pred_boxes": y} for x, y in zip(*inputs[:2], strict=True)]
    return Implementation(lambda: [matcher(layer, truth) for layer in layers], lambda found: as_index(found, inputs[2]))


def as_index(layers: list[detr_idiom.Pairs], targets: Targets) -> Tensor:
    """Return the matched pairs of each layer's images as the index of the query of each target, [L,T]."""
    index = torch.full((len(layers), targets.num_targets), -1)
    for layer, pairs in zip(index, layers, strict=True):
        for own, (query, target) in zip(layer.split(targets.sizes), pairs, strict=True):
            own[target] = query
    return index

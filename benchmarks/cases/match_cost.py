"""The matching cost: each target against the queries of its own image."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.clock import Times, peak_memory
from benchmarks.detr_idiom import matching_costs
from benchmarks.inputs import as_dicts, coco_like_targets, predictions
from benchmarks.peers import import_peer
from benchmarks.registry import Case, Goal, Implementation, backends, default_backend
from detr_fast import MatchWeights, Targets, ops

WEIGHTS = {
    "detr": MatchWeights.detr(),
    "rf_detr": MatchWeights(2, 5, 2, class_cost="focal", focal_alpha=0.25, focal_eps=0.0),
}
PEERS = {"detr": "facebookresearch/detr", "rf_detr": "RF-DETR"}
SIZES = [("detr", 6, 2, 100), *(("detr", 6, 16, q) for q in (100, 300, 900)), ("rf_detr", 6, 16, 300)]
SMALL = [("detr", 2, 3, 7), ("rf_detr", 2, 3, 7)]

Inputs = tuple[Tensor, Tensor, Targets]


def case(device: torch.device, costs: str, layers: int, images: int, queries: int) -> Case:
    weights, subject = WEIGHTS[costs], default_backend("match_cost", device)

    def inputs() -> Inputs:
        return *predictions(layers, images, queries, 92, device), coco_like_targets(images).to(device)

    def compute(inputs: Inputs, backend: str) -> Tensor:
        return ops.match_cost(*inputs, weights=weights, backend=backend)

    def expected(inputs: Inputs) -> Tensor:
        logits, boxes, targets = inputs
        return ops.match_cost(logits.double(), boxes.double(), targets, weights=weights, backend="reference")

    def memory(inputs: Inputs, times: Times) -> float:
        return peak_memory(lambda: compute(inputs, subject), device) / expected(inputs).float().nbytes

    faster = {("detr", "cuda"): 30, ("rf_detr", "cuda"): 10, ("detr", "cpu"): 3, ("rf_detr", "cpu"): 1.5}
    goals = (Goal("ratio", faster[costs, device.type], PEERS[costs]),)
    on_cuda = device.type == "cuda"
    return Case(
        f"costs of {costs}, {layers} layers, {images} images, {queries} queries, 92 logits",
        subject,
        inputs,
        {**backends("match_cost", device, compute), PEERS[costs]: detr if costs == "detr" else rf_detr},
        expected,
        goals=(*goals, Goal("memory", 1.1)) if on_cuda else goals,
        numbers={"memory": memory} if on_cuda else {},
    )


def detr(inputs: Inputs) -> Implementation:
    """Prepare the costs of every query of the batch against every target of the batch, layer by layer."""
    targets = inputs[2]

    def own_images(costs: list[Tensor]) -> Tensor:
        blocks = torch.stack(costs).unflatten(1, (targets.num_images, -1))  # [L,B,Q,T]
        columns = torch.arange(targets.num_targets, device=blocks.device)
        return blocks.transpose(2, 3)[:, targets.image_index(), columns]

    return Implementation(lambda: matching_costs(*inputs), own_images)


def rf_detr(inputs: Inputs) -> Implementation:
    """Prepare RF-DETR's costs: for each layer [Q,T], all layers stacked where it stacks them."""
    logits, boxes, targets = inputs
    module = import_peer("rfdetr", "rfdetr.models.matcher")
    matcher = module.HungarianMatcher(cost_class=2, cost_bbox=5, cost_giou=2, focal_alpha=0.25)
    truth = as_dicts(targets)
    layers = [{"pred_logits": x, "pred_boxes": y} for x, y in zip(logits, boxes, strict=True)]

    def stacked() -> list[Tensor]:
        return matcher._compute_stacked_compact_cost_matrices(layers, truth)

    def layer_by_layer() -> list[Tensor]:
        compute = matcher._compute_compact_detection_cost_matrix
        return [compute(layer, truth, clamp_target_labels=True) for layer in layers]

    is_stacked = logits[..., 0].numel() * max(targets.sizes) <= module._STACKED_COST_ELEMENT_LIMIT
    return Implementation(stacked if is_stacked else layer_by_layer, lambda costs: torch.stack(list(costs)).mT)

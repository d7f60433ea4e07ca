from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from detr_fast import MatchWeights, Targets
from tests.ops.inputs import Case, CompileCase, Rng, integer, predictions, targets

WEIGHTS = {
    "detr": MatchWeights.detr(),
    "mmdet2": MatchWeights.mmdet2(),
    "mmdet3": MatchWeights.mmdet3(),
    "deformable": MatchWeights.deformable(),
    "focal of the logit": MatchWeights(class_cost="focal", focal_eps=0.0),
    "focal, other numbers": MatchWeights(
        0.5, 3.0, 0.7, class_cost="focal", focal_alpha=0.4, focal_gamma=1.5, focal_eps=1e-3
    ),
    "gamma 0": MatchWeights(class_cost="focal", focal_gamma=0.0),
    "gamma 1": MatchWeights(class_cost="focal", focal_gamma=1.0),
    "corners, gamma 3": MatchWeights(
        class_cost="focal", focal_gamma=3.0, focal_eps=0.0, l1_format="xyxy", giou_eps=1e-6, box_scale=1333.0
    ),
    "areas below the smallest": MatchWeights(giou_eps=0.05, box_scale=0.75),
    "iou": MatchWeights(iou_kind="iou"),
    "iof": MatchWeights(iou_kind="iof"),
    "iou, corners": MatchWeights(iou_kind="iou", l1_format="xyxy", giou_eps=1e-6, box_scale=1333.0),
    "iof, focal": MatchWeights(iou_kind="iof", class_cost="focal", giou_eps=1e-6, box_scale=1333.0),
    "iou, areas below the smallest": MatchWeights(iou_kind="iou", giou_eps=0.05, box_scale=0.75),
    "iof, areas below the smallest": MatchWeights(iou_kind="iof", giou_eps=0.05, box_scale=0.75),
}
# Layers, targets of each image, queries, logits.
SHAPES = {
    "one": (1, [1], 1, 2),
    "no target": (2, [0, 0], 5, 4),
    "no image": (2, [], 5, 4),
    "no layer": (0, [2], 5, 4),
    "no query": (1, [2], 0, 4),
    "more targets than queries": (1, [150, 2], 10, 92),
    "many classes": (2, [0, 5, 0], 33, 366),
    "many targets and queries": (1, [130], 257, 33),
}


def conformance_cases() -> Iterator[Case]:
    for name, weights in WEIGHTS.items():
        yield Case(name, lambda dtype, rng, weights=weights: _arguments(dtype, rng, 2, [3, 0, 18], 35, 7, weights))
    for name, shape in SHAPES.items():
        for kind in ("detr", "deformable"):
            yield Case(
                f"{name}, {kind}",
                lambda dtype, rng, shape=shape, kind=kind: _arguments(dtype, rng, *shape, WEIGHTS[kind]),
            )
    # With focal_eps, 1 - p is rounded: float64 is no exact reference for logits further from 0.
    for kind, spread in (("detr", 40.0), ("deformable", 4.0), ("focal of the logit", 40.0)):
        yield Case(
            f"logits far from 0, {kind}",
            lambda dtype, rng, kind=kind, spread=spread: _arguments(dtype, rng, 1, [4], 9, 19, WEIGHTS[kind], spread),
        )
    yield Case(  # the exponential of every largest logit overflows
        "logits beyond 88, detr", lambda dtype, rng: _arguments(dtype, rng, 1, [4], 9, 3, WEIGHTS["detr"], 1000.0)
    )
    yield Case("saturated scores, focal of the logit", _saturated)
    for kind in ("detr", "mmdet2", "deformable", "iou", "iof", "iou, corners", "iof, focal"):
        yield Case(f"boxes without area, {kind}", lambda dtype, rng, kind=kind: _flat(dtype, rng, WEIGHTS[kind]))
    for number in range(4):
        yield Case(f"random {number}", _random)


def _arguments(
    dtype: torch.dtype,
    rng: Rng,
    layers: int,
    sizes: list[int],
    queries: int,
    num_logits: int,
    weights: MatchWeights,
    spread: float = 3.0,
) -> tuple[Any, ...]:
    predicted = predictions(rng, layers, len(sizes), queries, num_logits, dtype, spread)
    return *predicted, targets(rng, sizes, num_logits - 1), weights


def _saturated(dtype: torch.dtype, rng: Rng) -> tuple[Any, ...]:
    """Scores so close to 1 that the logarithm of the score is small, with the class cost alone."""
    logits, boxes = predictions(rng, 1, 1, 9, 6, dtype)
    weights = MatchWeights(1.0, 0.0, 0.0, class_cost="focal", focal_gamma=0.0, focal_alpha=1.0, focal_eps=0.0)
    return logits.abs() + 10, boxes, targets(rng, [4], 6), weights


def _flat(dtype: torch.dtype, rng: Rng, weights: MatchWeights) -> tuple[Any, ...]:
    rows = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.0, 0.5], [0.5, 0.5, 0.25, 0.25]])
    logits = torch.zeros(1, 1, 3, 4, dtype=dtype)
    return logits, rows.to(dtype)[None, None], Targets.from_list([{"labels": [0, 1, 2], "boxes": rows}]), weights


def _random(dtype: torch.dtype, rng: Rng) -> tuple[Any, ...]:
    sizes = [integer(rng, 0, 12) for _ in range(integer(rng, 1, 4))]
    weights = list(WEIGHTS.values())[integer(rng, 0, len(WEIGHTS) - 1)]
    return _arguments(dtype, rng, integer(rng, 1, 3), sizes, integer(rng, 1, 70), integer(rng, 2, 40), weights)


def compile_cases() -> Iterator[CompileCase]:
    for name, num_logits, dtype, registers in (
        ("mmdet2", 5, torch.bfloat16, 96),
        ("detr", 92, torch.float32, 128),
        ("deformable", 91, torch.float32, 112),
        ("focal of the logit", 91, torch.float32, 112),
        ("detr", 366, torch.float32, 128),
        ("iou", 92, torch.float32, 128),
        ("iof, focal", 91, torch.float32, 112),
    ):
        arguments = _arguments(dtype, torch.Generator(), 6, [7, 20], 300, num_logits, WEIGHTS[name])
        yield CompileCase(f"{name}, {num_logits} logits, {dtype}", arguments, {"match_cost_kernel": registers})

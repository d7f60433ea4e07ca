"""What is measured of whole steps: matcher and criterion, from predictions to gradients, and patched into others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.conftest import coco_like_targets
from benchmarks.gpu_rows import Case, Goal, Sides
from benchmarks.integration_steps import FAMILIES, predictions, rfdetr_steps, steps
from detr_fast import LossWeights, MatchWeights, SetCriterion, Targets

MOST_TARGETS = 63  # of an image, in coco_like_targets

GradientStep = Callable[[], tuple[Tensor, ...]]  # the total, and the gradients of logits and boxes


def criterion_step(criterion: SetCriterion, logits: Tensor, boxes: Tensor, targets: Targets) -> GradientStep:
    def step() -> tuple[Tensor, ...]:
        leaves = logits.detach().requires_grad_(), boxes.detach().requires_grad_()
        total = criterion(*leaves, targets).total
        total.backward()
        return total.detach(), *(leaf.grad for leaf in leaves)

    return step


def criterion_of(peer: str, layers: int, images: int, queries: int, device: torch.device) -> Sides:
    if peer == "DETR":  # of 6 layers
        criterion, num_logits = SetCriterion(), 92
        theirs, _ = steps("DETR", images, queries, device)
    else:
        match = MatchWeights(2, 5, 2, class_cost="focal", focal_alpha=0.25, focal_eps=0.0)
        loss = LossWeights(1, 1, 1, class_loss="ia_bce", focal_alpha=0.25)
        criterion, num_logits = SetCriterion(match, loss), 91
        theirs, _ = rfdetr_steps(images, queries, device, layers)
    predicted = predictions(layers, images, queries, num_logits, device)
    ours = criterion_step(criterion, *predicted, coco_like_targets(images).to(device))
    return Sides(ours, theirs, lambda: torch.testing.assert_close(ours()[0], theirs(), rtol=1e-5, atol=0))


def criterion_in_a_graph(layers: int, images: int, queries: int, device: torch.device) -> Sides:
    """A replay with targets that the graph was not captured with; copying them in is part of it."""
    predicted = predictions(layers, images, queries, 92, device)
    targets = coco_like_targets(images).to(device)
    static = coco_like_targets(images, seed=1).to(device).pad(MOST_TARGETS)
    eager = criterion_step(SetCriterion(), *predicted, targets)
    replay = _capture(criterion_step(SetCriterion(), *predicted, static), device)

    def ours() -> tuple[Tensor, ...]:
        static.copy_(targets)
        return replay()

    def check() -> None:
        for result, expected in zip(ours(), eager(), strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-7)

    return Sides(ours, eager, check)


def _capture(step: GradientStep, device: torch.device) -> GradientStep:
    """The step as a CUDA graph; on a CPU the step itself."""
    if device.type == "cpu":
        return step
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return results

    return replay


def integration(family: str, images: int, queries: int, device: torch.device) -> Sides:
    theirs, ours = steps(family, images, queries, device)
    return Sides(ours, theirs, lambda: torch.testing.assert_close(ours(), theirs(), rtol=1e-5, atol=0))


def cases() -> Iterator[Case]:
    table, what = "matcher and criterion, forward and backward", "6 layers, 16 images, 300 queries"
    for peer, name, faster in (("DETR", "transformers' DETR", 10), ("RF-DETR", "RF-DETR", 4)):
        yield Case(table, what, name, partial(criterion_of, peer, 6, 16, 300), (Goal("ratio", at_least=faster),))
    yield Case(
        table,
        f"{what}, a CUDA graph replayed",
        "ours without the graph",
        partial(criterion_in_a_graph, 6, 16, 300),
        (Goal("us", at_most=300),),
    )


def integration_cases() -> Iterator[Case]:
    for family in FAMILIES:
        for queries in (100, 300):
            for images in (2, 8, 16, 32):
                yield Case(
                    "detectors of others, patched and unpatched",
                    f"{family}, {images} images, {queries} queries",
                    "unpatched",
                    partial(integration, family, images, queries),
                )

"""Matcher and criterion in a CUDA graph, replayed with targets that it was not captured with."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.cases.criterion import Inputs, gradient_step
from benchmarks.clock import Call
from benchmarks.inputs import MAX_TARGETS, coco_like_targets, predictions
from benchmarks.registry import Case, Goal, Implementation
from detr_fast import SetCriterion

SIZES = [(6, 16, 300)]
SMALL = [(2, 3, 12)]
DEVICES = ("cuda",)


def case(device: torch.device, layers: int, images: int, queries: int) -> Case:
    def inputs() -> Inputs:
        return *predictions(layers, images, queries, 92, device), coco_like_targets(images).to(device)

    def eager(inputs: Inputs) -> Implementation:
        criterion = SetCriterion()
        return gradient_step(inputs, lambda logits, boxes: criterion(logits, boxes, inputs[2]).total)

    def graph(inputs: Inputs) -> Implementation:
        """Prepare the replay; copying the targets into the captured ones is part of it."""
        captured = coco_like_targets(images, seed=1).to(device).pad(MAX_TARGETS)
        replay = capture(eager((*inputs[:2], captured)).call, device)

        def step() -> tuple[Tensor, ...]:
            captured.copy_(inputs[2])
            return replay()

        return Implementation(step)

    return Case(
        f"{layers} layers, {images} images, {queries} queries",
        "CUDA graph",
        inputs,
        {"CUDA graph": graph, "eager": eager},
        lambda inputs: eager(inputs).call(),
        atol=1e-7,
        goals=(Goal("us", 300),),
    )


def capture(step: Call, device: torch.device) -> Call:
    """Return the step as a CUDA graph; on a CPU the step itself."""
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

from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import backends, coco_like_targets, synchronized
from detr_fast import ops


@pytest.mark.parametrize(("num_images", "num_queries"), [(2, 100), (16, 100), (16, 300)])
@pytest.mark.parametrize(("device", "backend"), backends("match_cost"))
def test_match_cost(benchmark, device, backend, num_images, num_queries):
    benchmark.group = f"match_cost, {device}, 6 layers, {num_images} images, {num_queries} queries, 91 classes"
    logits = torch.randn(6, num_images, num_queries, 92)
    boxes = torch.rand(6, num_images, num_queries, 4) * 0.4 + 0.2
    targets = coco_like_targets(num_images)
    exact = ops.match_cost(logits.double(), boxes.double(), targets, backend="reference")
    logits, boxes, targets = logits.to(device), boxes.to(device), targets.to(device)
    result = ops.match_cost(logits, boxes, targets, backend=backend)
    torch.testing.assert_close(result.cpu().double(), exact, rtol=1e-5, atol=1e-5)
    benchmark(synchronized(lambda: ops.match_cost(logits, boxes, targets, backend=backend), device))

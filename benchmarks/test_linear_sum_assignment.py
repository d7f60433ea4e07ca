from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import backends, coco_like_targets, synchronized
from detr_fast import ops


@pytest.mark.parametrize(("num_images", "num_queries"), [(16, 100), (16, 300)])
@pytest.mark.parametrize(("device", "backend"), backends("linear_sum_assignment"))
def test_step_of_training(benchmark, device, backend, num_images, num_queries):
    benchmark.group = f"batch_linear_sum_assignment, {device}, 6 layers, {num_images} images, {num_queries} queries"
    targets = coco_like_targets(num_images)
    cost = torch.rand(6, targets.num_targets, num_queries)
    exact = ops.batch_linear_sum_assignment(cost, targets, backend="scipy")
    cost = cost.to(device)
    assert torch.equal(ops.batch_linear_sum_assignment(cost, targets, backend=backend).cpu(), exact)
    benchmark(synchronized(lambda: ops.batch_linear_sum_assignment(cost, targets, backend=backend), device))

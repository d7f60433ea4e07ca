"""The whole step from predictions to gradients, with the solver's backends."""

from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import backends, coco_like_targets, synchronized
from detr_fast import SetCriterion, use_backend


@pytest.mark.parametrize(("num_images", "num_queries"), [(2, 100), (16, 100)])
@pytest.mark.parametrize(("device", "backend"), backends("linear_sum_assignment"))
def test_matcher_and_criterion(benchmark, device, backend, num_images, num_queries):
    benchmark.group = f"matcher and criterion with gradient, {device}, {num_images} images, {num_queries} queries"
    logits = torch.randn(6, num_images, num_queries, 92).to(device)
    boxes = (torch.rand(6, num_images, num_queries, 4) * 0.4 + 0.2).to(device)
    targets = coco_like_targets(num_images).to(device)
    criterion = SetCriterion()

    def step():
        inputs = logits.detach().requires_grad_(), boxes.detach().requires_grad_()
        total = criterion(*inputs, targets).total
        total.backward()
        return total.detach()

    expected = step()
    with use_backend(linear_sum_assignment=backend):
        assert torch.equal(step(), expected)
        benchmark(synchronized(step, device))

from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import backends, coco_like_targets, synchronized
from detr_fast import ops


@pytest.mark.parametrize(("num_images", "num_queries"), [(2, 100), (16, 100), (16, 300)])
@pytest.mark.parametrize(("device", "backend"), backends("set_loss"))
def test_set_loss_with_its_gradient(benchmark, device, backend, num_images, num_queries):
    benchmark.group = f"set_loss and gradient, {device}, 6 layers, {num_images} images, {num_queries} queries"
    logits = torch.randn(6, num_images, num_queries, 92)
    boxes = torch.rand(6, num_images, num_queries, 4) * 0.4 + 0.2
    targets = coco_like_targets(num_images)
    index = ops.batch_linear_sum_assignment(ops.match_cost(logits, boxes, targets), targets)

    def losses(logits, boxes, targets, index, backend):
        inputs = logits.detach().requires_grad_(), boxes.detach().requires_grad_()
        terms = ops.set_loss(*inputs, targets, index, backend=backend)
        sum(term.sum() for term in terms.values()).backward()
        return (*terms.values(), *(tensor.grad for tensor in inputs))

    exact = losses(logits.double(), boxes.double(), targets, index, "reference")
    inputs = logits.to(device), boxes.to(device), targets.to(device), index.to(device)
    for value, expected in zip(losses(*inputs, backend), exact, strict=True):
        torch.testing.assert_close(value.cpu().double(), expected, rtol=1e-4, atol=1e-6)
    benchmark(synchronized(lambda: losses(*inputs, backend), device))

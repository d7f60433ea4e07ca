from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import backends, synchronized
from detr_fast import ops


@pytest.mark.parametrize("shape", [(16, 100, 20), (16, 300, 20)], ids=str)
@pytest.mark.parametrize(("device", "backend"), backends("pairwise_box"))
def test_pairwise_giou(benchmark, device, backend, shape):
    benchmark.group = f"pairwise_box_iou (giou), {device}, batch x N x M = {shape}"
    batch, n, m = shape
    arguments = {"kind": "giou", "box_format": "cxcywh"}
    boxes1, boxes2 = torch.rand(batch, n, 4) * 0.4 + 0.2, torch.rand(batch, m, 4) * 0.4 + 0.2
    exact = ops.pairwise_box_iou(boxes1.double(), boxes2.double(), **arguments, backend="reference")
    boxes1, boxes2 = boxes1.to(device), boxes2.to(device)
    result = ops.pairwise_box_iou(boxes1, boxes2, **arguments, backend=backend)
    torch.testing.assert_close(result.cpu().double(), exact, rtol=0, atol=1e-5)
    benchmark(synchronized(lambda: ops.pairwise_box_iou(boxes1, boxes2, **arguments, backend=backend), device))

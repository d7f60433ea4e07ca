from __future__ import annotations

import torch

from detr_fast import ops


def test_against_cdist():
    boxes1, boxes2 = torch.randn(3, 5, 4), torch.randn(3, 8, 4)
    torch.testing.assert_close(ops.pairwise_box_l1(boxes1, boxes2), torch.cdist(boxes1, boxes2, p=1))


def test_gradients():
    boxes = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.randn(2, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(ops.pairwise_box_l1, boxes)

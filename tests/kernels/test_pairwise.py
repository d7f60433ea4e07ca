from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from detr_fast import ops

pytest.importorskip("triton")

OPS = {
    "iou": ops.pairwise_box_iou,
    "iou of centres": partial(ops.pairwise_box_iou, box_format="cxcywh"),
    "iou eps": partial(ops.pairwise_box_iou, eps=0.2),
    "giou": partial(ops.pairwise_box_iou, kind="giou"),
    "giou of centres, eps": partial(ops.pairwise_box_iou, kind="giou", box_format="cxcywh", eps=1e-6),
    "giou eps": partial(ops.pairwise_box_iou, kind="giou", eps=0.2),
    "l1": ops.pairwise_box_l1,
}


def _corners(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low, size = torch.rand(2, *shape, 2, dtype=torch.float64, generator=generator)
    return torch.cat((low, low + size), -1)


def _forward_and_backward(op, boxes1: Tensor, boxes2: Tensor, backend: str) -> tuple[Tensor, ...]:
    boxes1, boxes2 = boxes1.detach().requires_grad_(), boxes2.detach().requires_grad_()
    out = op(boxes1, boxes2, backend=backend)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view(out.shape)
    return out, *torch.autograd.grad((out * weight).sum(), (boxes1, boxes2))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((2, 1, 3), (4, 5)),
        ((3,), (2, 2)),
        ((2, 3), (1, 2)),
        ((0,), (3,)),
        ((2, 3), (2, 0)),
        ((0, 2), (1, 3)),
        ((1,), (1,)),
    ],
)
def test_leading_dimensions_broadcast(first, second, device):
    boxes1, boxes2 = _corners(*first).to(device), _corners(*second, seed=1).to(device)
    for op in (ops.pairwise_box_l1, OPS["giou"]):
        results = _forward_and_backward(op, boxes1, boxes2, "triton")
        for result, expected in zip(results, _forward_and_backward(op, boxes1, boxes2, "reference"), strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def test_gradients_are_the_numerical_ones(device):
    boxes1, boxes2 = _corners(2, 2).to(device).requires_grad_(), _corners(3, seed=1).to(device).requires_grad_()
    op = partial(OPS["giou of centres, eps"], backend="triton")
    assert torch.autograd.gradcheck(op, (boxes1, boxes2), fast_mode=True)


def test_boxes_of_any_strides_and_mixed_dtypes(device):
    boxes1 = _corners(4, 6).to(device).transpose(0, 1)[::2]
    boxes2 = _corners(3, 4).to(device).transpose(0, 1)[None, :, 1].float()
    result = ops.pairwise_box_l1(boxes1, boxes2, backend="triton")
    expected = ops.pairwise_box_l1(boxes1, boxes2, backend="reference")
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's inf - inf
def test_boxes_that_are_not_finite_give_what_they_give(device):
    boxes1 = torch.tensor([[0, 0, 1, float("nan")], [0, 0, float("inf"), 1], [0, 0, 1, 1]], device=device)
    for op in (ops.pairwise_box_l1, OPS["giou"]):
        result, expected = (op(boxes1, boxes1, backend=backend) for backend in ("triton", "reference"))
        torch.testing.assert_close(result, expected, equal_nan=True)

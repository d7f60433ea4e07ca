from __future__ import annotations

import pytest
import torch

from detr_fast import ops


def _slow_iou(a, b, kind):
    """One pair of corner boxes, in plain Python."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    iou = width * height / union if union else 0.0
    if kind == "iof":
        area = (a[2] - a[0]) * (a[3] - a[1])
        return width * height / area if area else 0.0
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return iou if kind == "iou" else iou - ((hull - union) / hull if hull else 0.0)


def _corners(*shape: int) -> torch.Tensor:
    low = torch.rand(*shape, 2, dtype=torch.float64)
    return torch.cat((low, low + torch.rand(*shape, 2, dtype=torch.float64)), -1)


@pytest.mark.parametrize("kind", ["iou", "giou", "iof"])
def test_iou_against_plain_python(kind):
    boxes1, boxes2 = _corners(2, 5), _corners(2, 7)
    boxes2[0, 3] = boxes1[0, 2]  # identical
    boxes2[1, 0, 2:] = boxes2[1, 0, :2]  # a point
    boxes1[1, 0] = boxes2[1, 0]  # the same point
    result = ops.pairwise_box_iou(boxes1, boxes2, kind=kind)
    for b in range(2):
        for i in range(5):
            for j in range(7):
                expected = _slow_iou(boxes1[b, i].tolist(), boxes2[b, j].tolist(), kind)
                assert result[b, i, j].item() == pytest.approx(expected, abs=1e-12)


def test_formats_agree():
    boxes1, boxes2 = _corners(4), _corners(6)

    def centres(boxes):
        return torch.cat(((boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]), -1)

    corners = ops.pairwise_box_iou(boxes1, boxes2, kind="giou")
    from_centres = ops.pairwise_box_iou(centres(boxes1), centres(boxes2), kind="giou", box_format="cxcywh")
    torch.testing.assert_close(corners, from_centres)


@pytest.mark.parametrize("kind", ["iou", "giou", "iof"])
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_iou_gradients(kind, eps):
    boxes1, boxes2 = _corners(3).requires_grad_(), _corners(4).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: ops.pairwise_box_iou(a, b, kind=kind, eps=eps), (boxes1, boxes2))


def test_boxes_without_area_have_finite_values_and_gradients():
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.2, 0.3, 0.9, 0.3], [0.1, 0.1, 0.4, 0.4]], requires_grad=True)
    giou = ops.pairwise_box_iou(boxes, boxes, kind="giou")
    giou.sum().backward()
    assert giou.isfinite().all()
    assert boxes.grad.isfinite().all()
    assert boxes.grad.abs().max() < 1e3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_float32(dtype):
    boxes1, boxes2 = _corners(5).to(dtype), _corners(6).to(dtype)
    result = ops.pairwise_box_iou(boxes1, boxes2, kind="giou")
    assert result.dtype == torch.float32
    exact = ops.pairwise_box_iou(boxes1.double(), boxes2.double(), kind="giou")
    torch.testing.assert_close(result, exact.float(), rtol=1e-5, atol=1e-5)


def test_empty_sets():
    assert ops.pairwise_box_iou(torch.zeros(0, 4), torch.zeros(3, 4)).shape == (0, 3)
    assert ops.pairwise_box_l1(torch.zeros(2, 3, 4), torch.zeros(2, 0, 4)).shape == (2, 3, 0)


@pytest.mark.parametrize("bad", [torch.zeros(3, 5), torch.zeros(4), torch.zeros(3, 4, dtype=torch.int64)])
def test_bad_boxes(bad):
    for call in (ops.pairwise_box_iou, ops.pairwise_box_l1):
        with pytest.raises(ValueError, match="boxes2 must be floating point"):
            call(torch.zeros(2, 4), bad)


def test_bad_options():
    with pytest.raises(ValueError, match="kind"):
        ops.pairwise_box_iou(torch.zeros(1, 4), torch.zeros(1, 4), kind="diou")
    with pytest.raises(ValueError, match="box_format"):
        ops.pairwise_box_iou(torch.zeros(1, 4), torch.zeros(1, 4), box_format="xywh")


@pytest.mark.parametrize("eps", [0.0, 1e-7])
def test_the_gradient_of_boxes_that_touch_is_that_of_boxes_that_overlap(eps):
    """As facebookresearch/detr computes it with the releases of PyTorch that it is used with."""
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([[1.0, 0.0, 2.0, 1.0]], dtype=torch.float64)
    ops.pairwise_box_iou(boxes, other, kind="iou", box_format="xyxy", eps=eps, backend="reference").sum().backward()
    torch.testing.assert_close(boxes.grad, torch.tensor([[0, 0, 0.5, 0]], dtype=torch.float64))  # 1 / union

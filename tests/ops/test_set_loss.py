from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from detr_fast import LossWeights, MatchWeights, Targets, ops
from tests.ops.conformance import host_backends

BACKENDS = host_backends("set_loss")


def _match(case):
    return ops.batch_linear_sum_assignment(ops.match_cost(*case), case.targets)


def _total(losses, weights: LossWeights):
    return sum(getattr(weights, name) * loss.sum() for name, loss in losses.items())


@pytest.mark.parametrize("case", "ABCDEFT")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_losses(golden, golden_case, case, dtype, backend):
    expected = golden("loss_official")
    inputs = golden_case(case, dtype)
    losses = ops.set_loss(*inputs, _match(inputs), backend=backend)
    last = inputs.logits.shape[0] - 1
    for name, loss in losses.items():
        for layer in range(last + 1):
            key = f"loss/{name}" + (f"_{layer}" if layer < last else "")
            exact, single = (float(expected[f"{case}/{p}/{key}"]) for p in ("f64", "f32"))
            # The golden float64 run weighs no-object by float32(0.1), which shifts its losses by 1e-8 or so.
            allowed = 5e-8 * abs(exact) if dtype == torch.float64 else 2 * abs(single - exact) + 5e-7 * abs(exact)
            assert abs(float(loss[layer]) - exact) <= allowed, key


@pytest.mark.parametrize("case", "ABCDEFT")
@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_gradients(golden, golden_case, case, backend):
    expected = golden("loss_official")
    grads = {}
    for dtype in (torch.float32, torch.float64):
        logits, boxes, targets = golden_case(case, dtype)
        index = _match(golden_case(case, dtype))
        logits.requires_grad_(), boxes.requires_grad_()
        _total(ops.set_loss(logits, boxes, targets, index, backend=backend), LossWeights()).backward()
        grads[dtype] = {"grad_logits": logits.grad.numpy(), "grad_boxes": boxes.grad.numpy()}
    for name in ("grad_logits", "grad_boxes"):
        single = expected[f"{case}/f32/{name}"]
        exact = expected.get(f"{case}/f64/{name}", grads[torch.float64][name])
        np.testing.assert_allclose(grads[torch.float64][name], exact, rtol=1e-7, atol=1e-9, err_msg=name)
        scale = np.abs(exact).max()
        error, allowed = np.abs(grads[torch.float32][name] - exact).max(), 2 * np.abs(single - exact).max()
        assert error <= max(allowed, 1e-7 * scale), name


@pytest.mark.parametrize("case", "ABF")
@pytest.mark.parametrize(
    ("name", "wanted"), [("loss_ce", "d_logits"), ("loss_bbox", "d_boxes"), ("loss_giou", "d_boxes")]
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_gradients_of_single_losses(golden, golden_case, case, name, wanted, backend):
    logits, boxes, targets = golden_case(case, torch.float64)
    index = _match(golden_case(case, torch.float64))
    logits.requires_grad_(), boxes.requires_grad_()
    ops.set_loss(logits, boxes, targets, index, backend=backend)[name][-1].backward()
    grad = (logits if wanted == "d_logits" else boxes).grad[-1]
    np.testing.assert_allclose(
        grad.numpy(), golden("loss_official")[f"{case}/f64/last/{name}/{wanted}"], rtol=1e-7, atol=1e-9
    )


PRESETS = [LossWeights.detr(), LossWeights.mmdet2(), LossWeights.deformable()]


def _slow_losses(logits, boxes, targets: Targets, index, weights: LossWeights):
    """One layer, query by query in plain Python; logits [B,Q,C], boxes [B,Q,4], index [G,T]."""
    num_classes = logits.shape[-1] - (weights.class_loss == "softmax")
    images = targets.image_index().tolist()
    matched = {
        (images[t], int(index[g, t])): t for g in range(len(index)) for t in range(len(images)) if int(index[g, t]) >= 0
    }
    ce = divisor = 0.0
    for b in range(logits.shape[0]):
        for q in range(logits.shape[1]):
            row = logits[b, q].tolist()
            label = int(targets.labels[matched[b, q]]) if (b, q) in matched else num_classes
            if weights.class_loss == "softmax":
                weight = weights.no_object if label == num_classes else 1.0
                ce -= weight * (row[label] - math.log(sum(math.exp(x) for x in row)))
                divisor += weight
            else:
                for c, x in enumerate(row):
                    p = 1 / (1 + math.exp(-x))
                    ce += 0.25 * (1 - p) ** 2 * -math.log(p) if c == label else 0.75 * p**2 * -math.log(1 - p)
    num_boxes = max(1, len(matched) if weights.normalizer == "matched" else len(index) * len(images))
    divisor = max(divisor, weights.min_class_normalizer) if weights.class_loss == "softmax" else num_boxes
    l1 = giou = 0.0
    for (b, q), t in matched.items():
        l1 += float((boxes[b, q] - targets.boxes[t]).abs().sum())
        pair = boxes[b, q][None], targets.boxes[t].to(boxes.dtype)[None]
        giou += 1 - float(ops.pairwise_box_iou(*pair, kind="giou", box_format="cxcywh"))
    return ce / divisor, l1 / num_boxes, giou / num_boxes


@pytest.mark.parametrize("weights", PRESETS)
@pytest.mark.parametrize(("sizes", "groups"), [([3, 0, 5], 1), ([9, 2], 2), ([0, 0], 1), ([8], 1)])
def test_presets_against_plain_python(weights, sizes, groups, random_targets):
    torch.manual_seed(len(sizes))
    shape = (2, len(sizes), 6)
    logits, boxes = torch.randn(*shape, 4, dtype=torch.float64), torch.rand(*shape, 4, dtype=torch.float64) * 0.5 + 0.1
    targets = random_targets(sizes, 3)
    match = {"softmax": MatchWeights.detr(), "focal": MatchWeights.deformable()}[weights.class_loss]
    cost = ops.match_cost(logits, boxes, targets, weights=match, groups=groups)
    index = ops.batch_linear_sum_assignment(cost, targets, groups=groups)
    losses = ops.set_loss(logits, boxes, targets, index, weights=weights)
    for layer in range(2):
        expected = _slow_losses(logits[layer], boxes[layer], targets, index[layer].reshape(groups, -1), weights)
        for value, (name, loss) in zip(expected, losses.items(), strict=True):
            assert float(loss[layer]) == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize("weights", PRESETS)
def test_gradcheck(weights, random_targets):
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    boxes = (torch.rand(2, 2, 4, 4, dtype=torch.float64) * 0.5 + 0.1).requires_grad_()
    targets = random_targets([2, 6], 2)
    index = torch.tensor([[1, 3, 0, -1, 2, -1, 3, 1], [0, 1, 3, 2, 1, 0, -1, -1]])
    assert torch.autograd.gradcheck(
        lambda *inputs: tuple(ops.set_loss(*inputs, targets, index, weights=weights).values()), (logits, boxes)
    )


def test_given_normalizers_divide(random_targets):
    logits, boxes, targets = torch.randn(1, 1, 5, 4), torch.rand(1, 1, 5, 4), random_targets([2], 3)
    index = torch.tensor([[4, 1]])
    plain = ops.set_loss(logits, boxes, targets, index)
    given = ops.set_loss(logits, boxes, targets, index, num_boxes=torch.tensor(8.0), class_normalizer=4.6)
    torch.testing.assert_close(given["loss_bbox"], plain["loss_bbox"] * 2 / 8)
    torch.testing.assert_close(given["loss_giou"], plain["loss_giou"] * 2 / 8)
    torch.testing.assert_close(given["loss_ce"], plain["loss_ce"] * 2.3 / 4.6)


def test_unmatched_and_degenerate_boxes_leave_finite_gradients():
    point = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    targets = Targets.from_list([{"labels": torch.tensor([0, 1]), "boxes": torch.cat((point, point))}])
    boxes = point.expand(1, 1, 2, 4).clone().requires_grad_()
    losses = ops.set_loss(torch.zeros(1, 1, 2, 3), boxes, targets, torch.tensor([[0, -1]]))
    sum(loss.sum() for loss in losses.values()).backward()
    assert all(loss.isfinite().all() for loss in losses.values())
    assert boxes.grad.isfinite().all()
    assert not boxes.grad[0, 0, 1].any()


def test_indices_of_a_wrong_shape(random_targets):
    with pytest.raises(ValueError, match="query_index must be"):
        ops.set_loss(
            torch.zeros(2, 1, 4, 3),
            torch.rand(2, 1, 4, 4),
            random_targets([3], 2),
            torch.zeros(2, 2, dtype=torch.int64),
        )

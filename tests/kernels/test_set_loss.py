from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detr_fast import LossWeights, Targets, ops
from detr_fast.ops import faults
from tests.ops.conformance import assert_as_exact
from tests.ops.inputs.set_loss import random_index


@pytest.fixture
def assert_as_good_as_pytorch(run):
    def check(*inputs, **options) -> None:
        logits, boxes, *rest = inputs
        exact = run(logits.double(), boxes.double(), *rest, "reference", **options)
        plain, result = (run(*inputs, backend, **options) for backend in ("reference", "triton"))
        for own, reference, truth in zip(result, plain, exact, strict=True):
            assert own.dtype == reference.dtype
            assert_as_exact(own.float(), reference.float(), truth)

    return check


@pytest.fixture
def run(device):
    """Losses, and gradients of their sum weighted by layer and by loss."""

    def run(logits: Tensor, boxes: Tensor, targets: Targets, index: Tensor, backend: str, **options) -> list[Tensor]:
        logits, boxes = logits.detach().to(device).requires_grad_(), boxes.detach().to(device).requires_grad_()
        losses = ops.set_loss(logits, boxes, targets.to(device), index.to(device), backend=backend, **options)
        factor = torch.arange(1, logits.shape[0] + 1, dtype=losses["loss_ce"].dtype, device=device)
        sum((k + 1) * (factor * loss).sum() for k, loss in enumerate(losses.values())).backward()
        faults.raise_faults()
        return [tensor.detach().cpu() for tensor in (*losses.values(), logits.grad, boxes.grad)]

    return run


def test_mixed_dtypes_are_computed_in_float32(assert_as_good_as_pytorch, random_targets):
    torch.manual_seed(0)
    targets = random_targets([9, 12], 3)
    logits, boxes = torch.randn(4, 2, 20, 4).bfloat16(), torch.rand(4, 2, 20, 4, dtype=torch.float64)
    index = random_index(torch.Generator().manual_seed(0), 4, 1, targets.sizes, 20)
    assert_as_good_as_pytorch(logits, boxes, targets, index)


@pytest.mark.slow
@pytest.mark.parametrize("weights", [LossWeights.detr(), LossWeights.mmdet2(), LossWeights.deformable()])
def test_gradcheck(device, weights, random_targets):
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 4, 3, dtype=torch.float64).to(device).requires_grad_()
    boxes = (torch.rand(2, 2, 4, 4, dtype=torch.float64) * 0.5 + 0.1).to(device).requires_grad_()
    targets = random_targets([2, 6], 2).to(device)
    index = torch.tensor([[1, 3, 0, -1, 2, -1, 3, 1], [0, 1, 3, 2, 1, 0, -1, -1]], device=device)

    def losses(*inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(ops.set_loss(*inputs, targets, index, weights=weights, backend="triton").values())

    assert torch.autograd.gradcheck(losses, (logits, boxes), fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize("case", "ABCDEFT")
def test_golden_losses_and_gradients(device, golden, golden_case, case):
    expected = golden("loss_official")
    logits, boxes, targets = golden_case(case)
    num_layers = logits.shape[0]
    logits, boxes = logits[-2:].to(device), boxes[-2:].to(device)  # two layers: the interpreter is slow
    logits, boxes, targets = logits.requires_grad_(), boxes.requires_grad_(), targets.to(device)
    index = ops.batch_linear_sum_assignment(ops.match_cost(logits, boxes, targets), targets)
    losses = ops.set_loss(logits, boxes, targets, index, backend="triton")
    sum(getattr(LossWeights(), name) * loss.sum() for name, loss in losses.items()).backward()
    for name, loss in losses.items():
        for layer in range(-len(loss), 0):
            key = f"loss/{name}" + (f"_{num_layers + layer}" if layer < -1 else "")
            exact, single = (float(expected[f"{case}/{p}/{key}"]) for p in ("f64", "f32"))
            assert abs(loss[layer].item() - exact) <= 2 * abs(single - exact) + 5e-7 * abs(exact), key
    for grad, name in ((logits.grad, "grad_logits"), (boxes.grad, "grad_boxes")):
        single = torch.from_numpy(expected[f"{case}/f32/{name}"])[-2:]
        torch.testing.assert_close(grad.cpu(), single, rtol=1e-5, atol=2e-6 * float(single.abs().max()))


def test_given_normalizers(assert_as_good_as_pytorch, random_targets):
    torch.manual_seed(0)
    targets = random_targets([9, 12], 3)
    logits, boxes = torch.randn(4, 2, 20, 4), torch.rand(4, 2, 20, 4)
    index = random_index(torch.Generator().manual_seed(0), 4, 1, targets.sizes, 20)
    options = {"num_boxes": torch.tensor(8, dtype=torch.int64), "class_normalizer": 4.6}
    assert_as_good_as_pytorch(logits, boxes, targets, index, **options)


def test_what_is_not_finite_shows(run, random_targets):
    logits, boxes, targets = torch.randn(2, 1, 5, 4), torch.rand(2, 1, 5, 4), random_targets([2], 3)
    logits[0, 0, 3, 2] = float("nan")
    boxes[1, 0, 1, 0] = float("nan")
    ce, bbox, giou, *_ = run(logits, boxes, targets, torch.tensor([[[4, 1]], [[4, 1]]]), "triton")
    assert ce.isnan().tolist() == [True, False]
    assert bbox.isnan().tolist() == giou.isnan().tolist() == [False, True]


def test_a_label_out_of_range_is_named(device, random_targets):
    targets = random_targets([2, 3], 3)
    targets.labels[3] = 3  # no-object itself
    inputs = torch.randn(2, 2, 5, 4), torch.rand(2, 2, 5, 4), targets, random_index(torch.Generator(), 2, 1, [2, 3], 5)
    ops.set_loss(*(x.to(device) for x in inputs), backend="triton")
    with pytest.raises(ValueError, match="layer 0, image 1, target 1: the label is out of range"):
        faults.raise_faults()

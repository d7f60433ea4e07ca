from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detr_fast import LossWeights, Targets, ops
from detr_fast.ops import faults

WEIGHTS = [
    LossWeights.detr(),
    LossWeights.mmdet2(),
    LossWeights.deformable(),
    LossWeights(class_loss="focal", focal_gamma=1.5, focal_alpha=0.6),
    LossWeights(class_loss="focal", focal_gamma=0.0),
    LossWeights.rt_detr(),
    LossWeights.lw_detr(),
    LossWeights(class_loss="ia_bce", focal_alpha=0.6, focal_gamma=1.5, giou_eps=1e-3, box_scale=0.5),
    LossWeights(no_object=0.3, giou_eps=1e-3, box_scale=0.5),
]


def _index(num_layers: int, groups: int, sizes: list[int], queries: int, seed: int = 0) -> Tensor:
    """A random match of each image's targets in each group: int64 [L,G,T], -1 where queries do not suffice."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.full((num_layers, groups, sum(sizes)), -1)
    for layer in range(num_layers):
        for group in range(groups):
            start = 0
            for size in sizes:
                chosen = torch.randperm(queries, generator=generator)[:size]
                places = start + torch.randperm(size, generator=generator)[: len(chosen)]
                index[layer, group, places] = chosen + group * queries
                start += size
    return index


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


@pytest.fixture
def assert_as_good_as_pytorch(run):
    """Triton's error is at most twice plain PyTorch's in the same dtype, against the reference in float64."""

    def check(logits: Tensor, boxes: Tensor, targets: Targets, index: Tensor, **options) -> None:
        exact = run(logits.double(), boxes.double(), targets, index, "reference", **options)
        plain = run(logits, boxes, targets, index, "reference", **options)
        own = run(logits, boxes, targets, index, "triton", **options)
        for ours, theirs, truth in zip(own, plain, exact, strict=True):
            assert ours.dtype == theirs.dtype
            assert ours.shape == theirs.shape
            # The interpreter truncates to bfloat16, where a GPU rounds: one unit more.
            rounding = torch.finfo(ours.dtype).eps * truth.abs().max()
            allowed = 2 * (theirs.double() - truth).abs().max() + (16 if ours.dtype == torch.float64 else 1) * rounding
            assert (ours.double() - truth).abs().max() <= allowed

    return check


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_losses_and_gradients(assert_as_good_as_pytorch, weights, dtype, random_targets):
    torch.manual_seed(0)
    targets = random_targets([3, 0, 9, 40], 4)  # more than queries, and more than a chunk
    logits, boxes = 4 * torch.randn(2, 4, 7, 5), torch.rand(2, 4, 7, 4) * 0.5 + 0.1
    index = _index(2, 1, targets.sizes, 7)
    assert_as_good_as_pytorch(logits.to(dtype), boxes.to(dtype), targets, index, weights=weights)


@pytest.mark.parametrize("num_classes", [2, 92, 366])
@pytest.mark.parametrize("weights", [LossWeights.detr(), LossWeights.deformable()])
def test_sizes_and_groups(assert_as_good_as_pytorch, num_classes, weights, random_targets):
    torch.manual_seed(1)
    targets = random_targets([2, 5], num_classes - 1)
    logits, boxes = torch.randn(1, 2, 3 * 13, num_classes), torch.rand(1, 2, 3 * 13, 4) * 0.5 + 0.1
    assert_as_good_as_pytorch(logits, boxes, targets, _index(1, 3, targets.sizes, 13), weights=weights)


def test_mixed_dtypes_are_computed_in_float32(assert_as_good_as_pytorch, random_targets):
    targets = random_targets([2], 3)
    logits, boxes = torch.randn(1, 1, 5, 4).bfloat16(), torch.rand(1, 1, 5, 4, dtype=torch.float64)
    assert_as_good_as_pytorch(logits, boxes, targets, torch.tensor([[[4, 1]]]))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_logits_of_any_size(assert_as_good_as_pytorch, weights, random_targets):
    """Far from 0, where a naive logarithm or exponential loses all digits."""
    targets = random_targets([3], 4)
    logits = torch.linspace(-90, 90, 30).reshape(1, 1, 6, 5)
    assert_as_good_as_pytorch(
        logits, torch.rand(1, 1, 6, 4) + 0.1, targets, torch.tensor([[[4, 1, 0]]]), weights=weights
    )


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("num_images", "num_layers"), [(2, 2), (0, 1), (1, 0)])
def test_no_target_no_image_no_layer(run, weights, num_images, num_layers):
    none = {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    targets = Targets.from_list([none] * num_images)
    logits, boxes = torch.randn(num_layers, num_images, 3, 4), torch.rand(num_layers, num_images, 3, 4)
    index = torch.zeros(num_layers, 1, 0, dtype=torch.int64)
    own, plain = (run(logits, boxes, targets, index, name, weights=weights) for name in ("triton", "reference"))
    for ours, theirs in zip(own, plain, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_degenerate_and_touching_boxes(run, weights):
    """Points, lines, equal boxes and shared edges: where gradients are a matter of agreement."""
    rows = [
        [0.5, 0.5, 0.0, 0.0],
        [0.5, 0.5, 0.25, 0.0],
        [0.5, 0.5, 0.25, 0.5],
        [0.75, 0.5, 0.25, 0.5],
        [0.5, 0.5, 0.125, 0.25],
        [0.125, 0.125, 0.0, 0.0],
    ]
    boxes = torch.tensor(rows, dtype=torch.float64)
    pairs = torch.cartesian_prod(torch.arange(6), torch.arange(6))
    targets = Targets.from_list([{"labels": torch.zeros(36, dtype=torch.int64), "boxes": boxes[pairs[:, 0]].float()}])
    predicted, logits = boxes[pairs[:, 1]].reshape(1, 1, 36, 4), torch.zeros(1, 1, 36, 2, dtype=torch.float64)
    index = torch.randperm(36, generator=torch.Generator().manual_seed(0))[None, None]
    predicted = predicted[:, :, index[0, 0].argsort()]
    own, plain = (run(logits, predicted, targets, index, name, weights=weights) for name in ("triton", "reference"))
    for ours, theirs in zip(own, plain, strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


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
            exact, theirs = (float(expected[f"{case}/{p}/{key}"]) for p in ("f64", "f32"))
            assert abs(loss[layer].item() - exact) <= 2 * abs(theirs - exact) + 5e-7 * abs(exact), key
    for grad, name in ((logits.grad, "grad_logits"), (boxes.grad, "grad_boxes")):
        theirs = torch.from_numpy(expected[f"{case}/f32/{name}"])[-2:]
        torch.testing.assert_close(grad.cpu(), theirs, rtol=1e-5, atol=2e-6 * float(theirs.abs().max()))


def test_given_normalizers(assert_as_good_as_pytorch, random_targets):
    logits, boxes, targets = torch.randn(1, 1, 5, 4), torch.rand(1, 1, 5, 4), random_targets([2], 3)
    options = {"num_boxes": torch.tensor(8, dtype=torch.int64), "class_normalizer": 4.6}
    assert_as_good_as_pytorch(logits, boxes, targets, torch.tensor([[[4, 1]]]), **options)


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
    inputs = torch.randn(2, 2, 5, 4), torch.rand(2, 2, 5, 4), targets, _index(2, 1, [2, 3], 5)
    ops.set_loss(*(x.to(device) for x in inputs), backend="triton")
    with pytest.raises(ValueError, match="layer 0, image 1, target 1: the label is out of range"):
        faults.raise_faults()

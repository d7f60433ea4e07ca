from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from detr_fast import MatchWeights, Targets, ops

pytest.importorskip("triton")

WEIGHTS = {
    "detr": MatchWeights.detr(),
    "mmdet2": MatchWeights.mmdet2(),
    "deformable": MatchWeights.deformable(),
    "focal, other numbers": MatchWeights(
        0.5, 3.0, 0.7, class_cost="focal", focal_alpha=0.4, focal_gamma=1.5, focal_eps=1e-3
    ),
    "no focusing": MatchWeights(class_cost="focal", focal_gamma=0.0),
    "from logits": MatchWeights(class_cost="focal", focal_eps=0.0),
    "gamma 1": MatchWeights(class_cost="focal", focal_gamma=1.0),
}


@pytest.fixture
def cost(device):
    def run(logits, boxes, targets, **options):
        return ops.match_cost(logits.to(device), boxes.to(device), targets.to(device), **options)

    return run


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_weights_and_dtypes(cost, assert_as_exact, random_targets, name, dtype):
    torch.manual_seed(0)
    logits, boxes = torch.randn(2, 3, 35, 7, dtype=dtype) * 3, torch.rand(2, 3, 35, 4, dtype=dtype)
    targets = random_targets([3, 0, 18], 6)
    assert_as_exact(
        cost(logits, boxes, targets, weights=WEIGHTS[name], backend="triton"),
        cost(logits, boxes, targets, weights=WEIGHTS[name], backend="reference"),
        cost(logits.double(), boxes.double(), targets, weights=WEIGHTS[name], backend="reference"),
    )


@pytest.mark.parametrize("num_classes", [2, 5, 92, 366])
@pytest.mark.parametrize(("sizes", "queries"), [([1], 1), ([150, 2], 10), ([0, 5, 0], 33)])
def test_shapes(cost, assert_as_exact, random_targets, num_classes, sizes, queries):
    torch.manual_seed(1)
    shape = (1, len(sizes), queries)
    logits, boxes = torch.randn(*shape, num_classes) * 4, torch.rand(*shape, 4)
    targets = random_targets(sizes, num_classes - 1)
    assert_as_exact(
        cost(logits, boxes, targets, backend="triton"),
        cost(logits, boxes, targets, backend="reference"),
        cost(logits.double(), boxes.double(), targets, backend="reference"),
    )


@pytest.mark.parametrize("case", "BCEFT")
def test_golden_costs(cost, golden, golden_case, assert_as_exact, case):
    expected = golden("match_official")
    result = cost(*golden_case(case), backend="triton")
    for layer in range(len(result)):
        plain, exact = (
            torch.from_numpy(expected[f"{case}/{precision}/L{layer}/cost"]).T for precision in ("f32", "f64")
        )
        assert_as_exact(result[layer], plain, exact)


@pytest.mark.parametrize("sizes", [[0, 0], []])
def test_no_target(cost, random_targets, sizes):
    targets = random_targets(sizes, 3)
    shape = (2, len(sizes), 5)
    result = cost(torch.zeros(*shape, 4), torch.zeros(*shape, 4), targets, backend="triton")
    assert result.shape == (2, 0, 5)


@pytest.mark.parametrize("weights", [MatchWeights.detr(), MatchWeights.mmdet2()])
def test_boxes_without_area(cost, weights):
    targets = Targets.from_list([{"labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.0, 0.0]])}])
    boxes = torch.tensor([[[[0.5, 0.5, 0.0, 0.0], [0.1, 0.1, 0.0, 0.3], [0.5, 0.5, 0.2, 0.2]]]])
    logits = torch.zeros(1, 1, 3, 3)
    results = [cost(logits, boxes, targets, weights=weights, backend=name) for name in ("triton", "reference")]
    assert results[0].isfinite().all()
    torch.testing.assert_close(*results)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's inf - inf
def test_what_is_not_finite_shows_as_in_the_reference(cost, random_targets):
    logits, boxes = torch.zeros(1, 1, 6, 70), torch.full((1, 1, 6, 4), 0.5)
    logits[0, 0, 0, 1] = float("nan")
    logits[0, 0, 1, 1] = float("inf")
    logits[0, 0, 2, :66] = float("-inf")  # a whole block of classes that is ruled out
    boxes[0, 0, 3, 2] = float("nan")
    boxes[0, 0, 4, 0] = float("inf")
    targets = random_targets([3], 69)
    results = [cost(logits, boxes, targets, backend=name) for name in ("triton", "reference")]
    torch.testing.assert_close(*results, equal_nan=True)
    assert results[0][0, 0].isfinite().tolist() == [False, False, True, False, False, True]


@pytest.mark.parametrize("label", [4, -1])
def test_a_label_that_only_the_device_knows_to_be_wrong_costs_nan(cost, random_targets, label, monkeypatch):
    """Targets packed on a GPU have labels that nobody has looked at."""
    monkeypatch.setattr(Targets, "check_labels", lambda self, num_classes: None)
    targets = random_targets([2, 2], 3)
    targets = replace(targets, labels=torch.tensor([0, 1, label, 2]))
    result = cost(torch.zeros(1, 2, 5, 5), torch.rand(1, 2, 5, 4), targets, backend="triton")
    assert result.isnan().all(-1).tolist() == [[False, False, True, False]]


def test_inputs_of_any_strides(cost, random_targets):
    logits, boxes = torch.randn(5, 2, 4, 3).transpose(0, 2), torch.rand(4, 2, 5, 8)[..., ::2]  # [4,2,5,...]
    targets = random_targets([1, 2], 2)
    results = [cost(logits, boxes, targets, backend=name) for name in ("triton", "reference")]
    torch.testing.assert_close(*results)

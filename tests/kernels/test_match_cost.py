from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from detr_fast import ops
from tests.ops.conformance import assert_as_exact

pytest.importorskip("triton")


@pytest.fixture
def cost(device):
    def run(logits, boxes, targets, **options):
        return ops.match_cost(logits.to(device), boxes.to(device), targets.to(device), **options)

    return run


@pytest.mark.parametrize("case", "BCEFT")
def test_golden_costs(cost, golden, golden_case, case):
    expected = golden("match_official")
    result = cost(*golden_case(case), backend="triton")
    for layer in range(len(result)):
        plain, exact = (
            torch.from_numpy(expected[f"{case}/{precision}/L{layer}/cost"]).T for precision in ("f32", "f64")
        )
        assert_as_exact(result[layer], plain, exact)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's inf - inf
def test_what_is_not_finite_shows_as_in_the_reference(cost, random_targets):
    logits, boxes = torch.zeros(1, 1, 6, 70), torch.full((1, 1, 6, 4), 0.5)
    logits[0, 0, 0, 1] = float("nan")
    logits[0, 0, 1, 1] = float("inf")
    logits[0, 0, 2, :66] = float("-inf")  # a complete block of classes that is ruled out
    boxes[0, 0, 3, 2] = float("nan")
    boxes[0, 0, 4, 0] = float("inf")
    targets = random_targets([3], 69)
    results = [cost(logits, boxes, targets, backend=name) for name in ("triton", "reference")]
    torch.testing.assert_close(*results, equal_nan=True)
    assert results[0][0, 0].isfinite().tolist() == [False, False, True, False, False, True]


@pytest.mark.parametrize("label", [4, -1])
def test_a_label_out_of_range_on_the_device_costs_nan(cost, random_targets, label):
    """Labels of targets packed on a GPU are not checked on the host."""
    targets = random_targets([2, 2], 3)
    targets = replace(targets, labels=torch.tensor([0, 1, label, 2]))
    result = cost(torch.zeros(1, 2, 5, 5), torch.rand(1, 2, 5, 4), targets, backend="triton")
    assert result.isnan().all(-1).tolist() == [[False, False, True, False]]

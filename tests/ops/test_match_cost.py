from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from detr_fast import MatchWeights, Targets, ops
from tests.ops.conformance import host_backends

CASES = "ABCDEFT"
BACKENDS = host_backends("match_cost")
PRESETS = [MatchWeights.detr(), MatchWeights.mmdet2(), MatchWeights.deformable()]
OVERLAPS = [replace(weights, iou_kind=kind) for weights in PRESETS for kind in ("iou", "iof")]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_costs(golden, golden_case, case, backend):
    expected = golden("match_official")
    own32 = ops.match_cost(*golden_case(case), backend=backend)
    own64 = ops.match_cost(*golden_case(case, torch.float64), backend=backend)
    assert own32.dtype == torch.float32
    for layer in range(len(own32)):
        exact = expected[f"{case}/f64/L{layer}/cost"].T
        single = expected[f"{case}/f32/L{layer}/cost"].T
        assert own32[layer].shape == exact.shape
        if exact.size:
            np.testing.assert_allclose(own64[layer].numpy(), exact, rtol=0, atol=1e-13)
            assert np.abs(own32[layer].numpy() - exact).max() <= 2 * np.abs(single - exact).max()


@pytest.mark.parametrize("case", "BCT")
@pytest.mark.parametrize(
    ("weights", "key"),
    [((1, 0, 0), "full_cost_class"), ((0, 1, 0), "full_cost_bbox"), ((0, 0, 1), "full_cost_giou")],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_single_costs(golden, golden_case, case, weights, key, backend):
    logits, boxes, targets = golden_case(case, torch.float64)
    full = torch.from_numpy(golden("match_official")[f"{case}/f64/L0/{key}"])
    full = full.view(logits.shape[1], logits.shape[2], -1)  # [B,Q,T], across images too
    own = ops.match_cost(logits[:1], boxes[:1], targets, weights=MatchWeights(*weights), backend=backend)[0]
    expected = full[targets.image_index(), :, torch.arange(targets.num_targets)]
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-12)


def _slow_cost(logits, boxes, target_label, target_box, weights: MatchWeights) -> float:
    """One pair in plain Python."""
    if weights.class_cost == "softmax":
        top = max(logits)
        cost_class = -math.exp(logits[target_label] - top) / sum(math.exp(x - top) for x in logits)
    else:
        p = 1 / (1 + math.exp(-logits[target_label]))
        positive = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8)
        negative = 0.75 * p**2 * -math.log(1 - p + 1e-8)
        cost_class = positive - negative

    def corners(box):
        cx, cy, w, h = box
        return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2

    a, b = corners(boxes), corners(target_box)
    pairs = zip(boxes, target_box, strict=True) if weights.l1_format == "cxcywh" else zip(a, b, strict=True)
    l1 = sum(abs(x - y) for x, y in pairs)
    a, b = [x * weights.box_scale for x in a], [x * weights.box_scale for x in b]
    eps = weights.giou_eps
    inter = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = max(eps, (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)
    hull = max(eps, (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1])))
    overlap = {
        "giou": inter / union - (hull - union) / hull,
        "iou": inter / union,
        "iof": inter / max(eps, (a[2] - a[0]) * (a[3] - a[1])),
    }[weights.iou_kind]
    return weights.cost_class * cost_class + weights.cost_bbox * l1 - weights.cost_giou * overlap


@pytest.mark.parametrize("weights", [*PRESETS, *OVERLAPS])
def test_presets_against_plain_python(weights, random_targets):
    torch.manual_seed(1)
    logits, boxes = torch.randn(2, 3, 5, 4, dtype=torch.float64), torch.rand(2, 3, 5, 4, dtype=torch.float64)
    targets = random_targets([2, 0, 7], 3)
    cost = ops.match_cost(logits, boxes, targets, weights=weights)
    assert cost.shape == (2, 9, 5)
    for layer in range(2):
        for t, image in enumerate(targets.image_index().tolist()):
            for q in range(5):
                expected = _slow_cost(
                    logits[layer, image, q].tolist(),
                    boxes[layer, image, q].tolist(),
                    int(targets.labels[t]),
                    targets.boxes[t].double().tolist(),
                    weights,
                )
                assert cost[layer, t, q].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("weights", [*PRESETS, *OVERLAPS])
def test_degenerate_boxes_have_finite_costs(weights, random_targets):
    targets = Targets.from_list([{"labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.0, 0.0]])}])
    boxes = torch.tensor([[[[0.5, 0.5, 0.0, 0.0], [0.1, 0.1, 0.0, 0.3]]]])
    assert ops.match_cost(torch.zeros(1, 1, 2, 3), boxes, targets, weights=weights).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_inputs_are_computed_in_float32(dtype, random_targets):
    logits, boxes = torch.randn(1, 2, 9, 6).to(dtype), torch.rand(1, 2, 9, 4).to(dtype)
    targets = random_targets([3, 4], 5)
    cost = ops.match_cost(logits, boxes, targets)
    assert cost.dtype == torch.float32
    assert torch.equal(cost, ops.match_cost(logits.float(), boxes.float(), targets))


@pytest.mark.parametrize("l1", ["xyxy", "xywh"])
@pytest.mark.parametrize("mode", ["giou", "iou", "iof"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_costs_and_matches_equal_those_of_mmdetection(golden, l1, mode, backend):
    arrays = {name: torch.from_numpy(x) for name, x in golden("mmdet_2_11").items() if name.startswith(("cost", "ass"))}
    height, width = 130, 150
    corners = arrays["cost/gt_bboxes"] / torch.tensor([width, height, width, height])
    boxes = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
    targets = Targets.from_list([{"labels": arrays["cost/gt_labels"], "boxes": boxes.float()}])
    weights = MatchWeights(
        0.2,
        0.5,
        3.0,
        l1_format="xyxy" if l1 == "xyxy" else "cxcywh",
        iou_kind=mode,
        giou_eps=1e-6,
        box_scale=math.sqrt(height * width),
    )
    logits, predicted = arrays["cost/logits"][None, None], arrays["cost/boxes"][None, None]
    cost = ops.match_cost(logits, predicted, targets, weights=weights, backend=backend)
    expected = arrays["cost/class"] + arrays[f"cost/l1 {l1}"] + arrays[f"cost/{mode}"]  # [Q,T]
    torch.testing.assert_close(cost[0], expected.T, rtol=0, atol=2e-6)  # targets are float32
    assigned = arrays[f"assigned/l1 {l1}, {mode}/gt_inds"]
    query = ops.batch_linear_sum_assignment(cost, targets)[0]
    assert torch.equal(assigned[query], torch.arange(1, 7))


def test_an_unknown_overlap_is_refused():
    with pytest.raises(ValueError, match="iou_kind must be one of giou, iou, iof, got 'diou'"):
        MatchWeights(iou_kind="diou")


def test_no_graph_is_kept(random_targets):
    logits = torch.randn(1, 1, 4, 3, requires_grad=True)
    assert not ops.match_cost(logits, torch.rand(1, 1, 4, 4, requires_grad=True), random_targets([2], 2)).requires_grad


def test_label_out_of_range_is_named(random_targets):
    targets = Targets.from_list(
        [
            {"labels": torch.tensor([0]), "boxes": torch.full((1, 4), 0.5)},
            {"labels": torch.tensor([1, 5]), "boxes": torch.full((2, 4), 0.5)},
        ]
    )
    with pytest.raises(ValueError, match="image 1, target 1: label 5 is out of range for 5 classes"):
        ops.match_cost(torch.zeros(1, 2, 4, 6), torch.rand(1, 2, 4, 4), targets)
    focal = MatchWeights.deformable()
    assert ops.match_cost(torch.zeros(1, 2, 4, 6), torch.rand(1, 2, 4, 4), targets, weights=focal).shape == (1, 3, 4)


def test_shapes_that_do_not_fit(random_targets):
    targets = random_targets([2, 1], 3)
    with pytest.raises(ValueError, match="expected logits"):
        ops.match_cost(torch.zeros(2, 4, 6), torch.zeros(2, 4, 4), targets)
    with pytest.raises(ValueError, match="for 3 images, targets for 2"):
        ops.match_cost(torch.zeros(1, 3, 4, 6), torch.zeros(1, 3, 4, 4), targets)
    with pytest.raises(ValueError, match="5 queries cannot be divided into 2 groups"):
        ops.match_cost(torch.zeros(1, 2, 5, 6), torch.zeros(1, 2, 5, 4), targets, groups=2)

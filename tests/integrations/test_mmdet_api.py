"""MMDetection's names without MMDetection, compared with what the code of MMDetection 2.11 computes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from detr_fast import LossWeights
from detr_fast.integrations import mmdet_api
from detr_fast.integrations.mmdet_api import (
    FFN,
    AssignResult,
    BBoxL1Cost,
    ClassificationCost,
    HungarianAssigner,
    IoUCost,
    SinePositionalEncoding,
    get_targets,
    loss,
)

# The options of tests/golden/make_mmdet_2_11.py.
SHAPES = ((130, 150, 3), (160, 96, 3), (100, 192, 3))
COSTS = {
    "class": {"type": "ClassificationCost", "weight": 0.2},
    "l1 xyxy": {"type": "BBoxL1Cost", "weight": 0.5},
    "l1 xywh": {"type": "BBoxL1Cost", "weight": 0.5, "box_format": "xywh"},
    "giou": {"type": "IoUCost", "weight": 3.0},
    "iou": {"type": "IoUCost", "weight": 3.0, "iou_mode": "iou"},
    "iof": {"type": "IoUCost", "weight": 3.0, "iou_mode": "iof"},
}
ASSIGNERS = [(l1, mode) for l1 in ("l1 xyxy", "l1 xywh") for mode in ("giou", "iou", "iof")]
ENCODINGS = {
    "default": {},
    "normalize": {"normalize": True},
    "temperature 20, scale 1": {"normalize": True, "temperature": 20, "scale": 1.0},
    "eps 0.5": {"normalize": True, "eps": 0.5},
    "temperature 20": {"temperature": 20},
}
FFNS = {
    "default": {},
    "gelu": {"act_cfg": {"type": "GELU"}},
    "3 layers, no residual": {"num_fcs": 3, "add_residual": False},
}


@pytest.fixture(scope="module")
def arrays(golden):
    """The golden arrays below a prefix, by the rest of their keys."""
    stored = golden("mmdet_2_11")

    def below(prefix):
        found = {key.removeprefix(prefix): array for key, array in stored.items() if key.startswith(prefix)}
        return {key: torch.from_numpy(array) for key, array in found.items() if array.dtype.kind != "U"}

    return below


def equal(found, expected, atol=1e-12):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def test_mmdetection_is_not_imported():
    program = "import sys, detr_fast.integrations.mmdet_api; print({'mmdet', 'huggingface_hub'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("name", COSTS)
def test_costs(arrays, name):
    golden = arrays("cost/")
    options = dict(COSTS[name])
    cost = getattr(mmdet_api, options.pop("type"))(**options)
    height, width, _ = SHAPES[0]
    factor = torch.tensor([width, height, width, height], dtype=torch.float64)
    boxes, truth = golden["boxes"], golden["gt_bboxes"]
    corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1) * factor
    arguments = {
        ClassificationCost: (golden["logits"], golden["gt_labels"]),
        BBoxL1Cost: (boxes, truth / factor),
        IoUCost: (corners, truth),
    }
    equal(cost(*arguments[type(cost)]), golden[name])


def test_the_example_of_the_iou_cost():
    """The example in the docstring of MMDetection's class, and the part of the first box that each target covers."""
    boxes = torch.tensor([[1.0, 1, 2, 2], [2, 2, 3, 4]])
    truth = torch.tensor([[0.0, 0, 2, 4], [1, 2, 3, 4]])
    equal(IoUCost()(boxes, truth), torch.tensor([[-0.1250, 0.1667], [0.1667, -0.5000]]), atol=5e-5)
    equal(IoUCost("iof", weight=2.0)(boxes, truth), torch.tensor([[-2.0, 0.0], [0.0, -2.0]]))


@pytest.mark.parametrize(("l1", "mode"), ASSIGNERS)
def test_assignments(arrays, l1, mode):
    golden, expected = arrays("cost/"), arrays(f"assigned/{l1}, {mode}/")
    truth = golden["gt_bboxes"], golden["gt_labels"]
    built = HungarianAssigner(COSTS["class"], COSTS[l1], COSTS[mode])
    result = built.assign(golden["boxes"], golden["logits"], *truth, {"img_shape": SHAPES[0]})
    assert (result.num_gts, result.num_preds, result.max_overlaps) == (6, 7, None)
    equal(result.gt_inds, expected["gt_inds"])
    equal(result.labels, expected["labels"])
    # The functions match in one call for all images, or image by image if a cost is a function of one's own.
    own = HungarianAssigner(lambda *args: built.cls_cost(*args), COSTS[l1], COSTS[mode])
    assert (built.match_weights() is None, own.match_weights() is None) == (False, True)
    for assigner in (built, own):
        (labels,), *_ = get_targets(
            [golden["logits"]], [golden["boxes"]], *([x] for x in truth), [{"img_shape": SHAPES[0]}], assigner=assigner
        )
        equal(labels, expected["labels"].where(expected["labels"] >= 0, 5))


@pytest.mark.parametrize(("targets", "queries"), [(0, 4), (3, 0), (5, 2)])
def test_assignments_of_few_predictions_or_targets(targets, queries):
    truth = torch.rand(targets, 4).sort(1).values * 100
    result = HungarianAssigner().assign(
        torch.rand(queries, 4), torch.randn(queries, 3), truth, torch.ones(targets).long(), {"img_shape": (90, 120)}
    )
    assert (result.gt_inds > 0).sum() == min(targets, queries)
    assert (result.labels == torch.where(result.gt_inds > 0, 1, -1)).all()


def ground_truth(case):
    sizes = case["sizes"].tolist()
    truth = [*case["gt_bboxes"].split(sizes)], [*case["gt_labels"].split(sizes)]
    return *truth, [{"img_shape": shape} for shape in SHAPES[: len(sizes)]]


@pytest.mark.parametrize("case", ["ragged", "none"])
def test_targets(arrays, case):
    golden = arrays(f"loss/{case}/")
    *lists, positive, negative = get_targets(
        [*golden["logits"][-1]], [*golden["boxes"][-1]], *ground_truth(golden), assigner=None
    )
    names = ("labels", "label_weights", "bbox_targets", "bbox_weights")
    for name, found in zip(names, lists, strict=True):
        equal(torch.stack(found), golden[f"targets/{name}"])
    assert [positive, negative] == golden["targets/counts"].tolist()


@pytest.mark.parametrize("case", ["ragged", "none"])
def test_losses_and_gradients(arrays, case):
    golden = arrays(f"loss/{case}/")
    logits, boxes = golden["logits"].requires_grad_(), golden["boxes"].requires_grad_()
    terms = loss(logits, boxes, *ground_truth(golden))
    parts = ("loss_cls", "loss_bbox", "loss_iou")
    assert [*terms] == [prefix + name for prefix in ("", "d0.", "d1.") for name in parts]
    for name, value in terms.items():
        equal(value, golden[name], atol=2e-6)  # targets are float32
    sum(terms.values()).backward()
    equal(logits.grad, golden["d_logits"], atol=2e-6)
    equal(boxes.grad, golden["d_boxes"], atol=2e-5)  # of up to 40


def test_losses_with_costs_and_weights_of_ones_own(arrays):
    golden = arrays("loss/ragged/")
    arguments = golden["logits"], golden["boxes"], *ground_truth(golden)
    expected = loss(*arguments)
    own = HungarianAssigner(ClassificationCost(), lambda *args: BBoxL1Cost(5.0)(*args), IoUCost(weight=2.0))
    changed = loss(*arguments, assigner=own, weights=replace(LossWeights.mmdet2(), loss_giou=0.5))
    for name, value in expected.items():
        equal(changed[name], value / 4 if name.endswith("iou") else value)
    with pytest.raises(ValueError, match="do not go together"):
        loss(*arguments, weights=LossWeights.deformable())


@pytest.mark.parametrize("name", ENCODINGS)
def test_encodings(arrays, name):
    golden = arrays("encoding/")
    encoding = SinePositionalEncoding(8, **ENCODINGS[name])
    equal(encoding(golden["mask"]), golden[name], atol=1e-6)
    equal(encoding(golden["mask"].byte()), golden[name], atol=1e-6)
    options = {"temperature": 10000, "normalize": False, "eps": 1e-6} | ENCODINGS[name]
    assert all(f"{key}={value}" in repr(encoding) for key, value in options.items())


@pytest.mark.parametrize("name", FFNS)
def test_feed_forward_networks(golden, arrays, name):
    network = FFN(8, 12, **FFNS[name]).double()
    network.load_state_dict(arrays(f"ffn/{name}/weights/"))
    x, residual = (arrays("ffn/")[key] for key in ("x", "residual"))
    equal(network(x), arrays(f"ffn/{name}/")["out"])
    equal(network(x, residual), arrays(f"ffn/{name}/")["out with residual"])
    assert repr(network) == str(golden("mmdet_2_11")[f"ffn/{name}/repr"])


def test_dropout_of_feed_forward_networks():
    x = torch.randn(64, 8)
    network = FFN(8, 12, dropout=0.5)
    assert (network(x) == x).float().mean() > 0.3  # half of the outputs are dropped
    assert not (network.eval()(x) == x).any()


def test_assign_results():
    """The example in the docstring of MMDetection's class."""
    result = AssignResult(
        9, torch.tensor([-1, 1, 2, 0]), torch.tensor([0, 0.5, 0.9, 0]), labels=torch.tensor([0, 3, 4, 0])
    )
    shapes = "gt_inds.shape=({n},), max_overlaps.shape=({n},), labels.shape=({n},))>"
    assert str(result) == "<AssignResult(num_gts=9, " + shapes.format(n=4)
    result.add_gt_(torch.tensor([3, 4, 5]))
    assert str(result) == "<AssignResult(num_gts=9, " + shapes.format(n=7)
    assert result.gt_inds.tolist() == [1, 2, 3, -1, 1, 2, 0]
    assert result.labels.tolist() == [3, 4, 5, 0, 3, 4, 0]
    assert result.max_overlaps[:3].tolist() == [1, 1, 1]
    result.set_extra_property("scores", 3)
    assert (result.get_extra_property("scores"), result.get_extra_property("other")) == (3, None)
    assert [*result.info] == ["num_gts", "num_preds", "gt_inds", "max_overlaps", "labels", "scores"]
    with pytest.raises(ValueError, match="there is a property 'labels' already"):
        result.set_extra_property("labels", 3)
    assert str(AssignResult(0, torch.zeros(2), None)) == (
        "<AssignResult(num_gts=0, gt_inds.shape=(2,), max_overlaps=None, labels=None)>"
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SinePositionalEncoding(4, normalize=True, scale="x"), TypeError, "scale must be a number, got 'x'"),
        (lambda: SinePositionalEncoding(4, eps=None), TypeError, "eps must be a number, got None"),
        (lambda: SinePositionalEncoding(5), ValueError, "it must be even, got 5"),
        (lambda: BBoxL1Cost(box_format="cxcywh"), ValueError, "box_format must be 'xyxy' or 'xywh', got 'cxcywh'"),
        (lambda: IoUCost("diou"), ValueError, "iou_mode must be 'giou', 'iou' or 'iof', got 'diou'"),
        (
            lambda: HungarianAssigner({"type": "FocalLossCost"}),
            ValueError,
            "type of a cost must be one of",
        ),
        (lambda: FFN(8, 12, num_fcs=1), ValueError, "num_fcs must be at least 2, got 1"),
        (lambda: FFN(8, 12, act_cfg={"type": "PReLU"}), ValueError, "one of ReLU, .*, GELU, got 'PReLU'"),
        (lambda: get_targets([], [], [], [], [], []), ValueError, "boxes to ignore are not supported"),
    ],
)
def test_faults_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()

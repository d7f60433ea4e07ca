"""Mistakes of those who call the library for the first time: an error names the mistake and the remedy.

Mistakes in targets, of their keys, labels and boxes, are in tests/ops/test_targets.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from detr_fast import HungarianMatcher, LossWeights, MatchWeights, SetCriterion, Targets, ops

BOX = [0.5, 0.5, 0.2, 0.2]
LIST = [
    {"labels": torch.tensor([0]), "boxes": torch.tensor([BOX])},
    {"labels": torch.tensor([2, 1]), "boxes": [BOX] * 2},
]
LOGITS, BOXES = torch.zeros(1, 2, 5, 4), torch.full((1, 2, 5, 4), 0.5)
COST, INDEX, DUALS = torch.rand(1, 3, 5), torch.tensor([[0, 1, 2]]), (torch.zeros(1, 3), torch.zeros(1, 2, 5))
OUTPUTS = {"pred_logits": LOGITS[-1], "pred_boxes": BOXES[-1]}


@pytest.fixture
def targets() -> Targets:
    return Targets.from_list(LIST)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.match_cost(LOGITS, BOXES, LIST),
        lambda: ops.set_loss(LOGITS, BOXES, LIST, INDEX),
        lambda: ops.batch_linear_sum_assignment(COST, LIST),
        lambda: ops.verify_assignment(COST, INDEX, *DUALS, LIST),
        lambda: ops.matched_pairs(INDEX, LIST),
        lambda: HungarianMatcher()(LOGITS, BOXES, LIST),
        lambda: SetCriterion()(LOGITS, BOXES, LIST),
    ],
)
def test_the_list_of_targets_is_passed_unpacked(call: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match=r"Targets.from_list\(\.\.\.\)") as error:
        call()
    assert str(error.value).endswith(("got list", "got list; build them with Targets.from_list(...)"))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (LIST[0], "targets must be a list with a mapping for each image, got dict"),
        (torch.zeros(2, 5), "targets must be a list with a mapping for each image, got Tensor"),
        ([([0], [BOX])], "image 0: the target must be a mapping with labels and boxes, got tuple"),
        ([LIST[0], {"labels": ["cat"], "boxes": [BOX]}], "image 1: the labels are no array of numbers"),
        ([{"labels": [0, 1], "boxes": [BOX, BOX[:3]]}], "image 0: the boxes are no array of numbers"),
        ([{"labels": None, "boxes": None}], "image 0: the labels are no array of numbers"),
    ],
)
def test_targets_are_no_list_of_mappings_with_numbers(targets: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Targets.from_list(targets)


def test_targets_are_built_of_boxes_that_require_grad() -> None:
    with pytest.raises(ValueError, match=r"target boxes require grad, but targets are constants; detach\(\) them"):
        Targets(
            torch.tensor([0]), torch.tensor([BOX], requires_grad=True), [1], torch.tensor([0, 1], dtype=torch.int32)
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: ops.match_cost(LOGITS.numpy(), BOXES, t), "logits must be a torch.Tensor, got ndarray"),
        (lambda t: ops.match_cost(LOGITS, BOXES.numpy(), t), "boxes must be a torch.Tensor, got ndarray"),
        (lambda t: ops.set_loss(LOGITS, BOXES, t, INDEX.tolist()), "query_index must be a torch.Tensor, got list"),
        (lambda t: ops.batch_linear_sum_assignment(COST.numpy(), t), "cost must be a torch.Tensor, got ndarray"),
        (lambda t: ops.pairwise_box_iou([BOX], torch.tensor([BOX])), "boxes1 must be a torch.Tensor, got list"),
        (lambda t: ops.pairwise_box_l1(torch.tensor([BOX]), np.array([BOX])), "boxes2 must be a torch.Tensor"),
    ],
)
def test_an_array_or_a_list_stands_for_a_tensor(call: Callable[[Targets], Any], message: str, targets: Targets) -> None:
    with pytest.raises(TypeError, match=f"{message}.*torch.as_tensor converts arrays and lists"):
        call(targets)


def test_predictions_are_integers(targets: Targets) -> None:
    with pytest.raises(ValueError, match=r"must be floating point, got torch\.float32 and torch\.int64"):
        SetCriterion()(LOGITS, (BOXES * 640).long(), targets)


def test_predictions_of_one_layer_have_no_dimension_of_layers(targets: Targets) -> None:
    with pytest.raises(ValueError, match=r"\[2, 5, 4\] and \[2, 5, 4\]; .*become those of L=1 by x\[None\]"):
        SetCriterion()(LOGITS[0], BOXES[0], targets)


def test_indices_are_floating_point(targets: Targets) -> None:
    with pytest.raises(TypeError, match=r"query_index must be int64 indices of queries, got torch\.float32"):
        ops.set_loss(LOGITS, BOXES, targets, INDEX.float())


@pytest.mark.parametrize(
    ("divisor", "error", "message"),
    [
        ("3", TypeError, "num_boxes must be a number or a tensor, got '3'"),
        (torch.ones(2), ValueError, r"num_boxes must be one number, got a tensor \[2\]"),
        (torch.ones((), requires_grad=True), ValueError, r"pass num_boxes.detach\(\)"),
    ],
)
def test_a_divisor_is_no_number(divisor: Any, error: type[Exception], message: str, targets: Targets) -> None:
    with pytest.raises(error, match=message):
        ops.set_loss(LOGITS, BOXES, targets, INDEX, num_boxes=divisor)


def test_a_divisor_is_a_number_of_numpy(targets: Targets) -> None:
    losses = [ops.set_loss(LOGITS, BOXES, targets, INDEX, num_boxes=n)["loss_bbox"] for n in (np.float32(7), 7)]
    assert torch.equal(*losses)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: HungarianMatcher({}), "weights must be MatchWeights, got dict"),
        (lambda: SetCriterion({}), "match must be MatchWeights, got dict"),
        (lambda: SetCriterion(loss={}), "loss must be LossWeights, got dict"),
        (lambda: SetCriterion(loss="focal"), "loss must be LossWeights, got str"),
        (lambda: SetCriterion(LossWeights(), MatchWeights()), "match must be MatchWeights, got LossWeights"),
        (lambda: ops.match_cost(LOGITS, BOXES, LIST, weights={}), "weights must be MatchWeights, got dict"),
        (
            lambda: ops.match_cost(LOGITS, BOXES, LIST, weights=LossWeights()),
            r"weights must be MatchWeights, got LossWeights; build them with MatchWeights\(\.\.\.\)",
        ),
        (lambda: ops.set_loss(LOGITS, BOXES, LIST, INDEX, weights={}), "weights must be LossWeights, got dict"),
    ],
)
def test_weights_are_of_another_class(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=f"{message}.*presets"):
        build()


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (BOXES * 640, "the predicted boxes contain 320; .*in pixels"),
        (BOXES * torch.tensor([1, 1, -1, 1]), "the predicted boxes have a side of -0.5; .*sigmoid"),
    ],
)
def test_predictions_are_in_pixels_or_have_negative_sides(boxes: torch.Tensor, message: str, targets: Targets) -> None:
    with pytest.warns(UserWarning, match=message) as warned:
        SetCriterion()(LOGITS, boxes, targets)
    assert [warning.filename for warning in warned] == [__file__]


def test_predictions_in_pixels_are_warned_of_once(targets: Targets) -> None:
    criterion = SetCriterion()
    with pytest.warns(UserWarning, match="the predicted boxes contain 320"):
        criterion(LOGITS, BOXES * 640, targets)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        criterion(LOGITS, BOXES * 641, targets)


def test_predictions_in_range_and_no_predictions_are_not_warned_of(targets: Targets) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SetCriterion()(LOGITS, torch.tensor([0.0, 1.0, 0.0, 1.0]).expand(1, 2, 5, 4), targets)
        SetCriterion()(LOGITS[:, :0], BOXES[:, :0], Targets.from_list([]))


@pytest.mark.parametrize("build", [HungarianMatcher, SetCriterion])
def test_groups_are_no_number_of_groups(build: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="groups must be an integer, got '2'"):
        build(groups="2")
    with pytest.raises(ValueError, match="groups must be at least 1, got 0"):
        build(groups=0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: HungarianMatcher(cost_class=1, cost_bbox=5, cost_giou=2), "unexpected argument 'cost_class'.*Match"),
        (
            lambda: SetCriterion(91, matcher=None, weight_dict={}, eos_coef=0.1, losses=[]),
            "unexpected argument 'matcher'.*LossWeights",
        ),
    ],
)
def test_matcher_and_criterion_are_built_as_those_of_detr(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        build()


@pytest.mark.parametrize("module", [HungarianMatcher(), SetCriterion()])
def test_matcher_and_criterion_are_called_as_those_of_detr(module: Any, targets: Targets) -> None:
    for given in (LIST, targets):
        with pytest.raises(TypeError, match=r"got a dictionary of outputs; stack the layers.*Targets.from_list"):
            module(OUTPUTS, given)


def test_the_hint_for_outputs_of_detr_converts_them(targets: Targets) -> None:
    """What the message of the error says is code that works."""
    outputs = {"aux_outputs": [OUTPUTS, OUTPUTS], **OUTPUTS}
    with pytest.raises(TypeError) as error:
        SetCriterion()(outputs, LIST)
    statement = str(error.value).split("the last one last: ")[1].split(", boxes alike")[0]
    names: dict[str, Any] = {"torch": torch, "outputs": outputs}
    exec(statement + "\n" + statement.replace("logits", "boxes"), names)
    assert SetCriterion()(names["logits"], names["boxes"], targets).terms.keys() >= {"loss_ce", "loss_bbox_1"}

"""Inputs at the edge of the contract: every backend gives the reference's values in float64, NaN and inf included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detr_fast import LossWeights, MatchWeights, Targets, ops, raise_faults
from detr_fast.ops.dispatch import OPS
from tests.ops.conformance import cast, run

INF, NAN = float("inf"), float("nan")
CPU = torch.device("cpu")
BACKENDS = ("reference", "cpp", "triton")
COSTS = {"softmax": MatchWeights(), "focal": MatchWeights.deformable()}
LOSSES = {
    "softmax": LossWeights(),
    "focal": LossWeights.deformable(),
    "varifocal": LossWeights.rt_detr(),
    "ia_bce": LossWeights.lw_detr(),
}
# The values of complete rows of logits, which mask a query, and of single logits, which mask a class.
EXTREMES = {"finfo.min": torch.finfo(torch.float32).min, "-1e32": -1e32, "-inf": -INF, "inf": INF, "nan": NAN}
# Powers of two, where a row is padded by nothing, and others.
NUM_LOGITS = (2, 15, 16, 92)


def _inputs(logits: Tensor | None = None, boxes: Tensor | None = None, num_logits: int = 5) -> tuple[Any, ...]:
    """Predictions [1,2,6,C] and [1,2,6,4] with four targets, float32 numbers in float64; two are matched in each."""
    rng = torch.Generator().manual_seed(0)
    if logits is None:
        logits = torch.randn(1, 2, 6, num_logits, generator=rng)
    if boxes is None:
        boxes = torch.rand(1, 2, 6, 4, generator=rng) * 0.5 + 0.1
    labels = torch.tensor([0, 0, num_logits - 2, 0])
    truth = [
        {"labels": labels[rows], "boxes": torch.rand(2, 4, generator=rng) * 0.5 + 0.1} for rows in ([0, 1], [2, 3])
    ]
    return logits.double(), boxes.double(), Targets.from_list(truth)


def _rows(value: float, num_logits: int) -> tuple[Any, ...]:
    """A matched query and an unmatched one whose logits are all ``value``."""
    logits, *rest = _inputs(num_logits=num_logits)
    logits[0, 0, 1] = logits[0, 1, 3] = value
    return logits, *rest


def _single(value: float) -> tuple[Any, ...]:
    """The logit of a target's class, of another class, of no-object and of an unmatched query."""
    logits, *rest = _inputs()
    logits[0, 0, 1, 0] = logits[0, 0, 4, 2] = logits[0, 1, 2, 4] = logits[0, 1, 3, 1] = value
    return logits, *rest


def _boxes(*rows: list[float]) -> tuple[Any, ...]:
    """The boxes of two matched queries."""
    logits, boxes, truth = _inputs()
    for query, row in zip((1, 4), rows, strict=True):
        boxes[0, 0, query] = torch.tensor(row)
    return logits, boxes, truth


BOXES = {
    "one negative side": ([0.5, 0.5, -0.3, 0.3], [0.4, 0.4, 0.2, -0.1]),
    "two negative sides": ([0.5, 0.5, -0.3, -0.3], [0.4, 0.4, -0.1, -0.9]),
    "no area": ([0.5, 0.5, 0.0, 0.3], [0.4, 0.4, 0.0, 0.0]),
    "tiny area": ([0.5, 0.5, 1e-9, 1e-9], [0.4, 0.4, 1e-12, 1e-3]),
    "nan": ([NAN, 0.5, 0.3, 0.3], [0.4, 0.4, 0.2, NAN]),
    "inf": ([INF, 0.5, 0.3, 0.3], [0.4, 0.4, INF, 0.2]),
}


def _of_any_weights(kinds: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Names of inputs, functions that make the predictions and targets, and weights."""
    for kind, weights in kinds.items():
        for name, value in EXTREMES.items():
            for num_logits in NUM_LOGITS if kind == "softmax" else (5,):
                yield f"{kind}, rows of {name}, {num_logits} logits", partial(_rows, value, num_logits), weights
            yield f"{kind}, single logits of {name}", partial(_single, value), weights
        for gamma in () if kind == "softmax" else (0.0, 1.0, 1.5):
            for value in (INF, -INF):
                changed = replace(weights, focal_gamma=gamma)
                yield f"{kind}, gamma {gamma}, logits of {value}", partial(_single, value), changed
    softmax = kinds["softmax"]
    for name, rows in BOXES.items():
        for eps in (0.0, 1e-6):
            yield f"boxes with {name}, eps {eps}", partial(_boxes, *rows), replace(softmax, giou_eps=eps)


def _costs() -> Iterator[Any]:
    inputs = [*_of_any_weights(COSTS)]
    for kind in ("iou", "iof"):
        for name, rows in BOXES.items():
            for eps in (0.0, 1e-6):
                changed = replace(COSTS["softmax"], iou_kind=kind, giou_eps=eps)
                inputs.append((f"boxes with {name}, {kind}, eps {eps}", partial(_boxes, *rows), changed))
    for eps in (0.0, 1e-30, 1e-20):
        weights = replace(COSTS["focal"], focal_eps=eps)
        for x in (37.0, -37.0, 90.0, -90.0):
            inputs.append((f"focal_eps {eps}, logits of {x}", partial(_single, x), weights))
        for gamma in (0.0, 1.5):
            for x in (INF, -INF):
                changed = replace(weights, focal_gamma=gamma)
                inputs.append((f"focal_eps {eps}, gamma {gamma}, logits of {x}", partial(_single, x), changed))
    for name, make, weights in inputs:
        yield pytest.param("match_cost", lambda make=make, weights=weights: (*make(), weights), id=f"match_cost-{name}")


def _losses() -> Iterator[Any]:
    index = torch.tensor([[[1, 4, 2, 0]]])
    for name, make, weights in _of_any_weights(LOSSES):
        yield pytest.param(
            "set_loss",
            lambda make=make, weights=weights: (*make(), index, weights, 4.0, 7.5),
            id=f"set_loss-{name}",
        )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of inf - inf and the like
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("op", "make"), [*_costs(), *_losses()])
def test_extreme_values(op, make, backend, empty_is_nan) -> None:
    if reason := OPS[op].backends[backend].refusal(CPU):
        pytest.skip(reason)
    arguments = make()
    exact = run(OPS[op], arguments, "reference", CPU)
    for dtype, rtol, atol in ((torch.float64, 1e-9, 1e-12), (torch.float32, 2e-5, 2e-6)):
        results = run(OPS[op], cast(arguments, dtype), backend, CPU)
        for number, (result, expected) in enumerate(zip(results, exact, strict=True)):
            torch.testing.assert_close(
                result.double(), expected, rtol=rtol, atol=atol, equal_nan=True,
                msg=lambda message, dtype=dtype, number=number: f"{dtype}, result {number}: {message}",
            )  # fmt: skip
    raise_faults()


REFUSED = {
    "below -1": ([[[1, 4, -2, 0]]], "layer 0, image 1, target 0: query_index is -2, which is below -1; use -1 for"),
    "too large": ([[[1, 4, 2, 6]]], "image 1, target 1: query_index is 6, which is not below the number of queries, 6"),
    "twice": ([[[1, 1, 2, 0]]], "layer 0, image 0, target 1: query_index is 1, which another target of the image has"),
    "in two groups": (
        [[[1, -1, 2, 0], [4, 5, -1, 2]]],
        "layer 0, group 1, image 1, target 1: query_index is 2, which another target of the image has; match a query",
    ),
}


@pytest.mark.parametrize("weights", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_query_indices_that_are_refused(backend, name, weights):
    if reason := OPS["set_loss"].backends[backend].refusal(CPU):
        pytest.skip(reason)
    index, message = REFUSED[name]

    def call() -> None:
        ops.set_loss(*_inputs(), torch.tensor(index), weights=weights, num_boxes=4.0, backend=backend)
        raise_faults()

    if backend == "triton":
        message = "two targets have the same query_index" if "another" in message else "query_index is neither -1 nor"
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_belong_to_no_target_are_not_matched(backend):
    if reason := OPS["set_loss"].backends[backend].refusal(CPU):
        pytest.skip(reason)
    logits, boxes, targets = _inputs()
    index = torch.tensor([[1, 4, 2, 0]])
    padded = torch.tensor([[1, 4, 2, 0, 3, 3]])
    expected = ops.set_loss(logits, boxes, targets, index, backend="reference")
    losses = ops.set_loss(logits, boxes, targets.pad(3), padded, backend=backend)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name])
    raise_faults()


@pytest.mark.parametrize("name", ["num_boxes", "class_normalizer"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_divisor_that_requires_grad_is_refused(backend, name):
    divisor = torch.tensor(4.0, requires_grad=True)
    with pytest.raises(ValueError, match=rf"{name} requires grad, .*; pass {name}.detach\(\)"):
        ops.set_loss(*_inputs(), torch.tensor([[1, 4, 2, 0]]), backend=backend, **{name: divisor})


CHANGED = ("logits", "boxes", "labels", "target boxes", "offsets", "query_index", "num_boxes", "class_normalizer")


@pytest.mark.parametrize("changed", CHANGED)
@pytest.mark.parametrize("backend", ["cpp", "triton"])
def test_inputs_changed_in_place_before_backward(backend, changed):
    if reason := OPS["set_loss"].backends[backend].refusal(CPU):
        pytest.skip(reason)
    logits, boxes, targets = _inputs()
    leaves = logits.requires_grad_(), boxes.requires_grad_()
    logits, boxes = leaves[0] * 1, leaves[1] * 1
    index, divisors = torch.tensor([[1, 4, 2, 0]]), (torch.tensor(4.0), torch.tensor(7.5))
    losses = ops.set_loss(
        logits, boxes, targets, index, num_boxes=divisors[0], class_normalizer=divisors[1], backend=backend
    )
    tensors = (logits, boxes, targets.labels, targets.boxes, targets.offsets, index, *divisors)
    with torch.no_grad():
        dict(zip(CHANGED, tensors, strict=True))[changed].mul_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses["loss_bbox"].sum().backward()


@pytest.mark.parametrize("backend", ["reference", "cpp", "scipy", "triton"])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cost": torch.rand(1, 3, 4, dtype=torch.complex64)}, TypeError, "cost must be real, got torch.complex64"),
        ({"targets_or_sizes": [1.7, 1.3]}, TypeError, "a number of targets must be an integer, got 1.7"),
        (
            {"targets_or_sizes": torch.tensor([1.0, 2.0])},
            TypeError,
            "a number of targets must be an integer, got tensor",
        ),
        ({"groups": 2.0}, TypeError, "groups must be an integer, got 2.0"),
        ({"num_threads": 1.0}, TypeError, "num_threads must be an integer, got 1.0"),
        ({"num_threads": 2**31}, ValueError, r"num_threads must be at least 1 and below 2\*\*31, got 2147483648"),
    ],
)
def test_arguments_of_the_solver_that_are_refused(backend, options, error, message):
    arguments = {"cost": torch.rand(1, 3, 4), "targets_or_sizes": [1, 2]} | options
    with pytest.raises(error, match=message):
        ops.batch_linear_sum_assignment(**arguments, backend=backend)


def test_integers_of_any_type_are_accepted():
    cost = torch.rand(1, 3, 4)
    expected = ops.batch_linear_sum_assignment(cost, [1, 2], groups=2)
    sizes, two = np.array([1, 2], dtype=np.int32), np.int64(2)
    assert torch.equal(ops.batch_linear_sum_assignment(cost, sizes, groups=two, num_threads=two), expected)
    assert torch.equal(ops.batch_linear_sum_assignment(cost, torch.tensor([1, 2]), groups=2), expected)


@pytest.mark.parametrize(
    ("eps", "message"),
    [(1e-40, "0 or at least 1e-30, got 1e-40"), (-1.0, "at least 0, got -1"), (NAN, "a finite number")],
)
def test_an_eps_that_backends_would_round_differently_is_refused(eps, message):
    for weights, field in ((MatchWeights, "focal_eps"), (MatchWeights, "giou_eps"), (LossWeights, "giou_eps")):
        with pytest.raises(ValueError, match=f"{field} must be {message}"):
            weights(**{field: eps})

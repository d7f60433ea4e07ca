"""RF-DETR's criterion, patched against unpatched."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from detr_fast import ops

WEIGHTS = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
NUM_CLASSES, NUM_QUERIES = 7, 10


@pytest.fixture
def rfdetr(import_or_skip):
    """The integration of RF-DETR."""
    import_or_skip("rfdetr")
    from detr_fast.integrations import rfdetr

    return rfdetr


@pytest.fixture
def build_criterion(rfdetr):
    def build(groups: int = 3, **options: Any) -> nn.Module:
        matcher = rfdetr.HungarianMatcher(cost_class=2, cost_bbox=5, cost_giou=2)
        losses = ["labels", "boxes", "cardinality"]
        options = {"focal_alpha": 0.25, "losses": losses, "group_detr": groups, "ia_bce_loss": True} | options
        return rfdetr.SetCriterion(NUM_CLASSES, matcher, WEIGHTS, **options).train()

    return build


def make_step(sizes, groups: int = 3, dtype: torch.dtype = torch.float32, layers: int = 3):
    """Outputs of decoder layers and encoder, all tensors requiring gradients, and targets."""
    generator = torch.Generator().manual_seed(sum(sizes))
    shape = (layers + 1, len(sizes), groups * NUM_QUERIES)
    logits = torch.randn(*shape, NUM_CLASSES, generator=generator).to(dtype).requires_grad_()
    boxes = (torch.rand(*shape, 4, generator=generator) * 0.4 + 0.2).to(dtype).requires_grad_()
    each = [{"pred_logits": x, "pred_boxes": y} for x, y in zip(logits, boxes, strict=True)]
    outputs = each[0] | {"aux_outputs": each[1:-1], "enc_outputs": each[-1]}
    targets = [
        {
            "labels": torch.randint(NUM_CLASSES, (n,), generator=generator),
            "boxes": (torch.rand(n, 4, generator=generator) * 0.4 + 0.2).to(dtype),
        }
        for n in sizes
    ]
    return outputs, targets, (logits, boxes)


def evaluate(criterion, *args: Any, **kwargs: Any):
    outputs, targets, leaves = make_step(*args, **kwargs)
    losses = criterion(outputs, targets)
    sum(
        WEIGHTS.get(name.split("_")[0] + "_" + name.split("_")[1], 0) * loss for name, loss in losses.items()
    ).backward()
    gradients = {f"gradient {i}": leaf.grad for i, leaf in enumerate(leaves)}
    return {name: loss.detach() for name, loss in losses.items()} | gradients


@pytest.mark.parametrize("parts", [{}, {"loss": False}, {"matcher": False}], ids=["both", "matcher", "loss"])
@pytest.mark.parametrize(
    "sizes", [(3, 0, 5), (12, 2), (0, 0), (4,)], ids=["ragged", "more than queries", "none", "one"]
)
def test_losses_and_gradients_within_twice_the_noise(rfdetr, build_criterion, sizes, parts):
    criterion = build_criterion()
    exact, host = (evaluate(criterion, sizes, dtype=dtype) for dtype in (torch.float64, torch.float32))
    accelerated = evaluate(rfdetr.accelerate(criterion, **parts), sizes)
    assert accelerated.keys() == host.keys()
    for name, value in accelerated.items():
        scale = float(exact[name].abs().max())
        error, allowed = (float((x - exact[name]).abs().max()) for x in (value, host[name]))
        assert error <= 2 * allowed + 3e-7 * scale + 1e-12, name


def test_ours_runs_once_for_all_layers(rfdetr, build_criterion, monkeypatch):
    counts = dict.fromkeys(("match_cost", "batch_linear_sum_assignment", "set_loss"), 0)

    def counted(name: str, original: Any, *args: Any, **kwargs: Any) -> Any:
        counts[name] += 1
        return original(*args, **kwargs)

    for name in counts:
        monkeypatch.setattr(ops, name, partial(counted, name, getattr(ops, name)))
    criterion = build_criterion()
    keys = criterion.state_dict().keys()
    evaluate(rfdetr.accelerate(criterion), (3, 0, 5))
    assert set(counts.values()) == {1}
    evaluate(pickle.loads(pickle.dumps(criterion)), (3, 0, 5))
    assert set(counts.values()) == {2}
    assert criterion.state_dict().keys() == keys
    evaluate(rfdetr.restore(criterion), (3, 0, 5))
    assert set(counts.values()) == {2}
    assert type(criterion) is rfdetr.SetCriterion
    assert type(criterion.matcher) is rfdetr.HungarianMatcher


def test_the_same_matches(rfdetr, build_criterion):
    for groups in (1, 13):
        criterion = build_criterion(groups)
        outputs, targets, _ = make_step((3, 0, 12), groups)
        layers = [outputs, *outputs["aux_outputs"], outputs["enc_outputs"]]
        expected = [criterion.matcher(layer, targets, group_detr=groups) for layer in layers]
        found = rfdetr.accelerate(criterion).matcher._match_many(layers, targets, group_detr=groups)
        for host, accelerated in zip(expected, found, strict=True):
            for (queries, rows), (found_queries, found_rows) in zip(host, accelerated, strict=True):
                assert sorted(zip(queries.tolist(), rows.tolist(), strict=True)) == list(
                    zip(found_queries.tolist(), found_rows.tolist(), strict=True)
                )


def test_ten_steps_stay_together(rfdetr, build_criterion):
    histories = []
    for patch in (False, True):
        criterion = build_criterion()
        outputs, targets, leaves = make_step((3, 0, 12))
        optimizer = torch.optim.SGD(leaves, lr=0.01)
        history = []
        for _ in range(10):
            each = [{"pred_logits": x, "pred_boxes": y.clamp(0.01, 1)} for x, y in zip(*leaves, strict=True)]
            outputs = each[0] | {"aux_outputs": each[1:-1], "enc_outputs": each[-1]}
            losses = (rfdetr.accelerate(criterion) if patch else criterion)(outputs, targets)
            total = sum(losses[f"{name}{s}"] * w for name, w in WEIGHTS.items() for s in ("", "_0", "_1", "_enc"))
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            history.append(total.item())
        histories.append(history)
    assert histories[1] == pytest.approx(histories[0], rel=1e-4)
    assert histories[0][-1] < histories[0][0]


def test_what_is_not_plain_goes_their_way(rfdetr, build_criterion):
    criterion = build_criterion()
    outputs, targets, _ = make_step((3, 2))
    outputs["pred_logits"] = outputs["pred_logits"].detach().clone()
    outputs["pred_logits"][0, 0] = float("nan")
    expected = criterion(outputs, targets)["loss_bbox"]
    torch.testing.assert_close(rfdetr.accelerate(criterion)(outputs, targets)["loss_bbox"], expected)
    rfdetr.restore(criterion)
    criterion.ia_bce_loss = False  # the plain focal loss
    expected = criterion(*make_step((3, 2))[:2])
    found = rfdetr.accelerate(criterion)(*make_step((3, 2))[:2])
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_other_criteria_are_refused(rfdetr):
    with pytest.raises(ValueError, match=r"expected the SetCriterion of RF-DETR .*, got Linear"):
        rfdetr.accelerate(nn.Linear(2, 2))

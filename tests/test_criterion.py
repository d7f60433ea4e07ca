from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from detr_fast import LossWeights, MatchWeights, Targets
from detr_fast.criterion import PRESETS, HungarianMatcher, SetCriterion


@pytest.mark.parametrize("case", "ABCDEFT")
def test_golden_terms(golden, golden_case, case):
    expected = golden("loss_official")
    output = SetCriterion.preset("detr")(*golden_case(case))
    exact = {
        key.removeprefix(f"{case}/f64/loss/"): float(value)
        for key, value in expected.items()
        if key.startswith(f"{case}/f64/loss/")
    }
    assert exact.keys() <= output.terms.keys()
    for name, value in exact.items():
        assert float(output.terms[name]) == pytest.approx(value, rel=2e-6, abs=2e-6), name
    assert float(output.total) == pytest.approx(float(expected[f"{case}/f64/total"]), rel=2e-6)


def test_golden_model(golden, tiny_detr):
    """The entire step, from images to the gradient of every parameter."""
    arrays = golden("tiny_official_post_sine")
    counts = arrays["tgt_counts"].tolist()
    labels, boxes = (torch.from_numpy(arrays[f"tgt_{key}"]).split(counts) for key in ("labels", "boxes"))
    targets = Targets.from_list([{"labels": x, "boxes": y} for x, y in zip(labels, boxes, strict=True)])
    for precision, dtype, tolerance in (("f32", torch.float32, 1e-5), ("f64", torch.float64, 1e-7)):
        model = tiny_detr(dtype)
        output = model(torch.from_numpy(arrays["images"]).to(dtype), torch.from_numpy(arrays["mask"]))
        total, terms = SetCriterion.preset("detr")(*output, targets)
        total.backward()
        for key, expected in arrays.items():
            if key.startswith(f"{precision}/loss/"):
                name = key.removeprefix(f"{precision}/loss/")
                assert float(terms[name]) == pytest.approx(float(expected), abs=tolerance), name
        assert float(total.detach()) == pytest.approx(float(arrays[f"{precision}/total"]), rel=tolerance)
        gradients = {name: p.grad for name, p in model.named_parameters()}
        compared = 0
        for key, expected in arrays.items():
            if key.startswith(f"{precision}/grad/"):
                name = key.removeprefix(f"{precision}/grad/")
                np.testing.assert_allclose(gradients[name].numpy(), expected, rtol=0, atol=tolerance, err_msg=name)
                compared += 1
        assert compared > 60


@pytest.mark.parametrize("match", PRESETS)
@pytest.mark.parametrize("loss", PRESETS)
def test_presets_that_read_the_logits_differently_do_not_mix(match, loss):
    softmax = ("detr", "mmdet2", "mmdet3")
    weights = getattr(MatchWeights, match)(), getattr(LossWeights, loss)()
    if (match in softmax) == (loss in softmax):
        SetCriterion(*weights)
        return
    with pytest.raises(ValueError, match="do not go together: softmax takes the last logit as no-object"):
        SetCriterion(*weights)


def test_groups_train_every_group(random_targets):
    targets = random_targets([2, 3], 4)
    criterion = SetCriterion(groups=3)
    logits = torch.randn(2, 2, 12, 5, requires_grad=True)
    boxes = (torch.rand(2, 2, 12, 4) * 0.5 + 0.1).requires_grad_()
    criterion(logits, boxes, targets).total.backward()
    moved = boxes.grad.abs().sum(-1) > 0  # [L,B,Q]
    assert moved.view(2, 2, 3, 4).sum(-1).tolist() == [[[2] * 3, [3] * 3]] * 2
    index = HungarianMatcher(groups=3)(logits, boxes, targets)
    assert index.shape == (2, 3, 5)
    assert torch.equal(index // 4, torch.arange(3)[None, :, None].expand(2, 3, 5))


def test_presets_differ_where_they_should(random_targets):
    targets = random_targets([6], 3)
    logits, boxes = torch.randn(1, 1, 4, 4), torch.rand(1, 1, 4, 4) * 0.5 + 0.1
    detr, mmdet = SetCriterion.preset("detr"), SetCriterion.preset("mmdet2")
    expected = detr(logits, boxes, targets).terms["loss_bbox"]
    mmdet.matcher = detr.matcher
    # Of six targets four are matched: the divisors are 6 and 4.
    torch.testing.assert_close(mmdet(logits, boxes, targets).terms["loss_bbox"], expected * 6 / 4)
    with pytest.raises(ValueError, match="the presets are detr, mmdet2, mmdet3, deformable, rt_detr, lw_detr"):
        SetCriterion.preset("yolo")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_train(name, random_targets):
    criterion = SetCriterion.preset(name)
    assert criterion.matcher.weights == getattr(MatchWeights, name)()
    assert criterion.weights == getattr(LossWeights, name)()
    logits = torch.randn(2, 2, 8, 4, requires_grad=True)
    boxes = (torch.rand(2, 2, 8, 4) * 0.5 + 0.1).requires_grad_()
    criterion(logits, boxes, random_targets([2, 3], 3)).total.backward()
    assert logits.grad.isfinite().all()
    assert boxes.grad.isfinite().all()


def test_the_presets_of_mmdetection_differ_in_the_l1_cost_and_the_smallest_divisor():
    assert MatchWeights.mmdet2() == replace(MatchWeights.mmdet3(), l1_format="xyxy")
    assert LossWeights.mmdet2() == replace(LossWeights.mmdet3(), min_class_normalizer=0.0)
    assert not LossWeights.mmdet2().sync_class_normalizer


RANK = """
import sys
import torch
import torch.distributed as dist
from detr_fast import LossWeights, SetCriterion, Targets

rank = int(sys.argv[1])
generator = torch.Generator().manual_seed(rank)
logits = torch.randn(1, 1, 6, 4, generator=generator)
boxes = torch.rand(1, 1, 6, 4, generator=generator) * 0.5 + 0.1
size = (1, 5)[rank]
image = {"labels": [0] * size, "boxes": torch.rand(size, 4, generator=generator) * 0.5 + 0.1}
arguments = logits, boxes, Targets.from_list([image])
criteria = [SetCriterion(loss=LossWeights(sync_class_normalizer=sync)) for sync in (True, False)]
alone = criteria[0](*arguments).terms
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
for criterion in criteria:
    terms = criterion(*arguments).terms
    print(*((alone[name] / terms[name]).item() for name in ("loss_ce", "loss_bbox", "loss_giou")))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_the_divisor_of_the_cross_entropy_is_that_of_a_rank_or_the_mean_over_ranks(tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for rank, process in enumerate(ranks):
        output, _ = process.communicate()
        assert process.returncode == 0
        both, own = (list(map(float, line.split())) for line in output.splitlines())
        matched = (1, 5)
        weight = [n + 0.1 * (6 - n) for n in matched]  # of the queries of each rank
        boxes = 3 / matched[rank]
        assert both == pytest.approx([sum(weight) / 2 / weight[rank], boxes, boxes])
        assert own == pytest.approx([1, boxes, boxes])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sync_class_normalizer": 1}, "sync_class_normalizer must be True or False, got 1"),
        ({"box_scale": "x"}, "box_scale must be a finite number, got 'x'"),
        ({"loss_ce": True}, "loss_ce must be a finite number, got True"),
    ],
)
def test_weights_of_another_type_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LossWeights(**options)


def test_errors_that_are_logged(random_targets):
    targets = Targets.from_list(
        [{"labels": torch.tensor([0, 1]), "boxes": torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1]])}]
    )
    boxes = torch.tensor([[[[0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1], [0.5, 0.5, 0.9, 0.9]]]])
    logits = torch.tensor([[[[9.0, 0, 0], [9.0, 0, 0], [9.0, 0, 0]]]])
    terms = SetCriterion()(logits, boxes, targets).terms
    assert float(terms["class_error"]) == 50  # the second box is predicted as class 0
    assert float(terms["cardinality_error"]) == 1  # three are predicted, two exist
    focal = SetCriterion.preset("deformable")
    assert float(focal(logits[..., :2], boxes, targets).terms["cardinality_error"]) == 1


@pytest.mark.slow
def test_resnet50_trains_a_step():
    """The complete configuration, on an image of COCO's size."""
    from detr_fast import detr_resnet50

    torch.manual_seed(0)
    model = detr_resnet50(num_classes=91)
    assert sum(p.numel() for p in model.parameters()) == 41_524_768
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 41_302_368
    targets = Targets.from_list([{"labels": torch.tensor([17, 90]), "boxes": torch.full((2, 4), 0.4)}])
    output = model(torch.randn(1, 3, 640, 480), torch.zeros(1, 640, 480, dtype=torch.bool))
    assert output.logits.shape == (6, 1, 100, 92)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    SetCriterion()(*output, targets).total.backward()
    optimizer.step()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name


def test_evaluation_mode_does_not_wait_for_other_ranks(random_targets, monkeypatch):
    """Ranks may have different numbers of batches to evaluate."""
    waited = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", waited.append)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    criterion = SetCriterion()
    inputs = torch.randn(2, 2, 6, 4), torch.rand(2, 2, 6, 4), random_targets([2, 3], 3)
    trained = criterion(*inputs).total
    assert len(waited) == 1
    torch.testing.assert_close(criterion.eval()(*inputs).total, trained)
    assert len(waited) == 1

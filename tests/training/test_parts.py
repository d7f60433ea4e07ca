from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from detr_fast import LossWeights, MatchWeights, SetCriterion
from detr_fast.training import ConfigError, OptimConfig, TrainingError, coco_metrics
from detr_fast.training.monitor import LossMonitor, MetricsLog, read_metrics
from detr_fast.training.optim import MovingAverage, build_optimizer, build_scheduler
from detr_fast.training.state import random_state, set_random_state


def _ground_truth():
    boxes = [[10, 10, 20, 20], [50, 50, 40, 40], [5, 60, 100, 30]]
    annotations = [
        {"id": k + 1, "image_id": 1 + k // 2, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
        for k, (b, c) in enumerate(zip(boxes, (3, 7, 3), strict=True))
    ]
    return {
        "images": [{"id": 1}, {"id": 2}],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }


def _detections(truth, scores):
    return np.array(
        [[a["image_id"], *a["bbox"], s, a["category_id"]] for a, s in zip(truth["annotations"], scores, strict=True)],
        dtype=np.float64,
    )


def test_perfect_detections_score_one():
    truth = _ground_truth()
    metrics = coco_metrics(truth, _detections(truth, [0.9, 0.8, 0.7]))
    assert metrics["AP"] == metrics["AP50"] == metrics["AP75"] == pytest.approx(1)
    assert metrics["AP_small"] == metrics["AP_large"] * 1 or metrics["AP_small"] == pytest.approx(1)
    assert metrics["classes"] == {"cat": pytest.approx(1), "dog": pytest.approx(1)}


def test_a_shifted_box_counts_at_low_overlap_only():
    truth = _ground_truth()
    detections = _detections(truth, [0.9, 0.8, 0.7])
    detections[1, 1] += 10  # the dog: IoU 30/50
    metrics = coco_metrics(truth, detections)
    assert metrics["AP50"] == pytest.approx(1)
    assert metrics["AP75"] == pytest.approx(0.5)  # the cats are right, the dog is not
    assert metrics["classes"]["dog"] == pytest.approx(3 / 10)  # at 0.50, 0.55 and 0.60 of ten thresholds


def test_nothing_found_and_crowds():
    truth = _ground_truth()
    assert coco_metrics(truth, np.zeros((0, 7)))["AP"] == 0
    truth["annotations"][2]["iscrowd"] = 1
    metrics = coco_metrics(truth, _detections(truth, [0.5, 0.5, 0.9]))
    assert metrics["AP"] == pytest.approx(1)  # what lies in a crowd is neither right nor wrong


def _model():
    model = torch.nn.Module()
    model.backbone = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model.head = torch.nn.Linear(2, 2)
    model.head.bias.requires_grad_(False)
    return model


def test_optimizer_gives_the_backbone_its_own_rate():
    model = _model()
    optimizer = build_optimizer(model, OptimConfig(lr=1e-3, backbone_lr=1e-5, weight_decay=0.2))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates == {
        id(model.head.weight): 1e-3,
        id(model.backbone[0].weight): 1e-5,
        id(model.backbone[0].bias): 1e-5,
    }
    assert all(group["weight_decay"] == 0.2 for group in optimizer.param_groups)


def test_a_rate_of_zero_freezes_the_backbone():
    model = _model()
    optimizer = build_optimizer(model, OptimConfig(lr=1e-3, backbone_lr=0))
    before = model.backbone[0].weight.detach().clone()
    model.head(model.backbone[0](torch.randn(4, 2))).sum().backward()
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    assert model.head.weight.grad is not None
    optimizer.step()
    assert torch.equal(model.backbone[0].weight, before)


def test_the_optimizer_is_fused_where_pytorch_can():
    assert build_optimizer(_model(), OptimConfig()).defaults["fused"] is True
    assert not build_optimizer(_model().to("meta"), OptimConfig()).defaults["fused"]


def _loss_curve(small_detr, random_targets, *, fused: bool) -> list[float]:
    torch.manual_seed(0)
    model, criterion = small_detr(dropout=0.0), SetCriterion()
    images, targets = torch.randn(2, 3, 48, 48), random_targets([2, 3], 3)
    optimizer = build_optimizer(model, OptimConfig(lr=1e-3, backbone_lr=1e-3))
    for group in optimizer.param_groups:
        group["fused"] = fused
    losses = []
    for _ in range(10):
        output = model(images)
        loss = criterion(output.logits, output.boxes, targets).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.slow
def test_the_fused_optimizer_gives_the_losses_of_the_unfused_one(small_detr, random_targets):
    curves = [_loss_curve(small_detr, random_targets, fused=fused) for fused in (True, False)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)
    assert curves[0][-1] < curves[0][0]


@pytest.mark.parametrize("epochs", [1, 50, 150, 300])
def test_the_rate_drops_after_two_thirds_of_any_number_of_epochs(epochs):
    scheduler = build_scheduler(
        build_optimizer(_model(), OptimConfig()), OptimConfig(), steps_per_epoch=9, epochs=epochs
    )
    (factor, *_) = scheduler.lr_lambdas
    assert [factor(step) for step in range(9 * epochs)] == [1.0] * (6 * epochs) + [0.1] * (3 * epochs)


@pytest.mark.parametrize(
    ("options", "step", "factor"),
    [
        ({"schedule": "step", "drop_epoch": 2}, 19, 1.0),
        ({"schedule": "step", "drop_epoch": 2}, 20, 0.1),
        ({"schedule": "step"}, 32, 1.0),
        ({"schedule": "step"}, 33, 0.1),  # two thirds of 50 steps
        ({"schedule": "cosine"}, 0, 1.0),
        ({"schedule": "cosine"}, 25, 0.5),
        ({"schedule": "cosine"}, 50, 0.0),
        ({"schedule": "cosine", "warmup_steps": 9}, 0, 0.1),
        ({"schedule": "cosine", "warmup_steps": 9}, 9, 1.0),
        ({"schedule": "step", "drop_epoch": 2, "warmup_steps": 3}, 1, 0.5),
    ],
)
def test_schedules(options, step, factor):
    config = OptimConfig(lr=2.0, backbone_lr=1.0, **options)
    optimizer = build_optimizer(_model(), config)
    scheduler = build_scheduler(optimizer, config, steps_per_epoch=10, epochs=5)
    for _ in range(step):
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2 * factor, factor], abs=1e-12)


def test_moving_average_by_hand():
    model = torch.nn.Linear(1, 1, bias=False)
    values = [1.0, 3.0, -2.0, 5.0]
    model.weight.data.fill_(values[0])
    ema = MovingAverage(model, 0.3)
    expected = values[0]
    for n, value in enumerate(values):
        model.weight.data.fill_(value)
        ema.update_parameters(model)
        decay = min(0.3, (1 + n) / (10 + n))
        expected = value if n == 0 else decay * expected + (1 - decay) * value
    assert float(ema.module.weight.detach()) == pytest.approx(expected)


def test_the_moving_average_is_pytorchs():
    """The average, its buffers and its state dict are those of AveragedModel with the same decays."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))

    @torch.no_grad()
    def update(averages, weights, num_averaged):
        n = int(num_averaged)
        torch._foreach_lerp_(averages, weights, 1 - min(0.5, (1 + n) / (10 + n)))

    actual, expected = MovingAverage(model, 0.5), AveragedModel(model, multi_avg_fn=update)
    for _ in range(20):
        model(torch.randn(5, 3))  # updates the running statistics
        for parameter in model.parameters():
            parameter.data.normal_()
        actual.update_parameters(model)
        expected.update_parameters(model)
    torch.testing.assert_close(actual.state_dict(), expected.state_dict())
    expected.load_state_dict(actual.state_dict(), strict=True)


def test_monitor_averages_and_names_what_broke():
    monitor = LossMonitor()
    assert monitor.means() == {}
    monitor.push("step 1", torch.tensor(2.0), {"loss_ce": torch.tensor(1.0)})
    monitor.push("step 2", torch.tensor(4.0), {"loss_ce": torch.tensor(3.0)})
    assert monitor.means() == {"loss": 3.0, "loss_ce": 2.0}
    assert monitor.means() == {}
    monitor.push("step 3, images [5]", torch.tensor(math.nan), {"loss_ce": torch.tensor(math.nan)})
    with pytest.raises(TrainingError, match=r"step 3, images \[5\]: loss_ce is nan; the last good"):
        monitor.check()


def test_monitor_takes_batches_with_and_without_the_norm_of_the_gradient():
    monitor = LossMonitor()
    for step in (1, 2):
        monitor.push(f"step {step}", torch.tensor(2.0), {"loss_ce": torch.tensor(1.0)})
        monitor.push(f"step {step}", torch.tensor(4.0), {"loss_ce": torch.tensor(3.0), "grad_norm": torch.tensor(step)})
    assert monitor.means() == {"loss": 3.0, "loss_ce": 2.0, "grad_norm": 1.5}


def test_metrics_after_the_resumed_step_are_dropped(tmp_path):
    with MetricsLog(tmp_path, step=0) as log:
        for step in (1, 2, 3):
            log.write("train", step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 4, "lo')  # killed while writing
    with MetricsLog(tmp_path, step=2) as log:
        log.write("train", 3, {"loss": 30.0})
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path / "metrics.jsonl")] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_random_states_come_back(tmp_path):
    import random

    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    torch.save(random_state(), tmp_path / "state.pt")
    expected = draw()
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": "fast"}, "optim.lr must be float, got 'fast'"),
        ({"accumulate": 1.5}, "optim.accumulate must be int, got 1.5"),
        ({"accumulate": True}, "optim.accumulate must be int, got True"),
        ({"schedule": "linear"}, "optim.schedule must be step or cosine, got 'linear'"),
    ],
)
def test_values_of_the_wrong_type_are_refused_by_name(options, message):
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**options)


def test_losses_for_models_without_a_no_object_class_are_refused(config):
    settings = config()
    for changed in ({"loss": LossWeights.deformable()}, {"match": MatchWeights.deformable()}):
        with pytest.raises(ConfigError, match=r"(loss.class_loss|match.class_cost) must be softmax, .* got focal"):
            replace(settings, **changed)


def test_integers_beyond_floating_point_numbers_are_refused():
    with pytest.raises(ConfigError, match=r"optim\.lr must be at least 0, got 1000"):
        OptimConfig(lr=10**400)
    with pytest.raises(ValueError, match="loss_ce must be a finite number, got 1000"):
        LossWeights(loss_ce=10**400)

"""The captured training step: the same function run eagerly on a CPU, the buffers of its inputs, and its graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from detr_fast import SetCriterion, Targets, raise_faults
from detr_fast.data import Batch
from detr_fast.training import CapturedStep, ConfigError, Trainer, TrainingError
from detr_fast.training.captured import check_capture
from detr_fast.training.loading import build_train_data
from detr_fast.training.monitor import LossMonitor
from detr_fast.training.optim import MovingAverage
from detr_fast.training.ranks import build_accelerator
from detr_fast.training.state import RunState
from detr_fast.training.step import TrainingStep
from detr_fast.training.step_function import StepFunction
from detr_fast.training.step_graphs import StepGraphs

STEPS = 50
CRITERION = SetCriterion()


def detr_loss(model: nn.Module, images: Tensor, mask: Tensor | None, targets: Targets) -> tuple[Tensor, dict]:
    output = model(images, mask)
    return CRITERION(output.logits, output.boxes, targets)


class EagerRecorder:
    """Stands in for the GPU: a recorded step is done when it is replayed."""

    def __init__(self) -> None:
        self.recorded = 0
        self.runs = 0
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    def run(self, step: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        self.runs += 1
        return step()

    def record(self, step: Callable[[], dict[str, Tensor]]) -> Callable[[], dict[str, Tensor]]:
        self.recorded += 1
        return step


def _adamw(model: nn.Module, **options: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4, **options)


def _graphs(model: nn.Module, *, max_targets: int = 4, max_graphs: int = 16, **options: Any) -> StepGraphs:
    settings = {"clip_norm": 0.1, "accumulate": 1, "moving_average": None, "accelerator": None} | options
    function = StepFunction(
        model, detr_loss, _adamw(model, fused=True, capturable=True), keep_gradients=True, **settings
    )
    return StepGraphs(function, EagerRecorder(), torch.device("cpu"), max_targets, max_graphs)  # type: ignore[arg-type]


def _inputs(random_targets: Any, sizes: list[int], seed: int = 0, height: int = 32) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(len(sizes), 3, height, 32, generator=generator)
    return images, None, random_targets(sizes, 3, seed)


@pytest.fixture
def batches(config) -> Callable[[], Iterator[Batch]]:
    """The batches of the shapes, epoch after epoch."""
    data = build_train_data(config().data, build_accelerator(mixed_precision="no", device="cpu"), seed=0)

    def iterate() -> Iterator[Batch]:
        for epoch in range(STEPS):
            for packed in data.epoch(epoch):
                yield packed.to("cpu")

    return iterate


def _plain_loop(model: nn.Module, batches: Iterator[Batch], settings: Any) -> tuple[list[float], nn.Module]:
    """The training step as it is written in PyTorch's tutorials, with an average of PyTorch's."""
    optim = settings.optim
    groups = [
        {"params": [p for n, p in model.named_parameters() if not n.startswith("backbone.0.")], "lr": optim.lr},
        {"params": [p for n, p in model.named_parameters() if n.startswith("backbone.0.")], "lr": optim.backbone_lr},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=optim.weight_decay, fused=True)
    scheduler = LambdaLR(optimizer, lambda step: 1.0 if step < 30 else 0.1)
    losses = []
    for batch in islice(batches, STEPS):
        total, _ = detr_loss(model, batch.images, batch.padding, batch.targets)
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
        optimizer.step()
        scheduler.step()
        losses.append(total.item())
    return losses, model


@pytest.mark.slow
@pytest.mark.parametrize("keep_gradients", [False, True])
def test_the_losses_are_those_of_a_plain_loop(config, small_detr, batches, keep_gradients):
    settings = config(schedule="step", epochs=15, drop_epoch=10, ema_decay=0.99)
    desired, model = _plain_loop(small_detr(dropout=0.0), batches(), settings)
    state = RunState(
        small_detr(dropout=0.0), settings, build_accelerator(mixed_precision="no", device="cpu"), steps_per_epoch=3
    )
    monitor = LossMonitor()
    step = TrainingStep(state, CRITERION, monitor, settings)
    step._step._step._keep_gradients = keep_gradients
    actual = []
    for batch in islice(batches(), STEPS):
        step(batch, last=True)
        actual.append(monitor.means()["loss"])
    assert actual == desired
    for name, value in state.model.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=0, atol=0, msg=name)


def test_an_instance_needs_no_accelerator(small_detr, random_targets):
    model, other = small_detr(dropout=0.0), small_detr(dropout=0.0)
    average, averaged = MovingAverage(model, 0.9), AveragedModel(other, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    step = CapturedStep(
        model, detr_loss, _adamw(model), clip_norm=0.1, accumulate=2, moving_average=average, capture=False
    )
    optimizer = _adamw(other)
    for index in range(4):
        inputs = _inputs(random_targets, [2, 3], index)
        losses = step(*inputs, last=index % 2 == 1)
        total, terms = detr_loss(other, *inputs)
        (total / 2).backward()
        assert losses.keys() - terms.keys() == {"loss"} | ({"grad_norm"} if index % 2 else set())
        assert not any(value.requires_grad for value in losses.values())
        torch.testing.assert_close(losses["loss"], total.detach(), rtol=0, atol=0)
        if index % 2:
            norm = nn.utils.clip_grad_norm_(other.parameters(), 0.1)
            torch.testing.assert_close(losses["grad_norm"], norm, rtol=0, atol=0)
            optimizer.step()
            optimizer.zero_grad()
            averaged.update_parameters(other)
    for actual, desired in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(actual, desired, rtol=0, atol=0)
    assert int(average.n_averaged) == int(averaged.n_averaged) == 2


@pytest.mark.slow
def test_buffers_change_no_loss(small_detr, random_targets):
    """Batches of two shapes with fewer, more and too many targets, through padded buffers and without them."""
    plain, buffered = small_detr(dropout=0.0), small_detr(dropout=0.0)
    step = CapturedStep(plain, detr_loss, _adamw(plain, fused=True), clip_norm=0.1, capture=False)
    graphs = _graphs(buffered)
    sizes = [[2, 3], [0, 1], [4, 4], [0, 0], [1, 2], [9, 0], [2, 2], [3, 12], [4, 1], [0, 7]]
    for index, of_images in enumerate(sizes):
        inputs = _inputs(random_targets, of_images, index, height=32 if index % 2 else 48)
        actual, desired = graphs(*inputs, last=True), step(*inputs)
        assert actual.keys() == desired.keys()
        for name, value in actual.items():
            torch.testing.assert_close(value, desired[name], rtol=1e-4, atol=1e-5, msg=name)
    assert [graph.max_targets for graph in graphs._graphs.values()] == [4, 16]  # the 9 and the 12 were odd batches


@pytest.mark.slow
def test_each_shape_is_captured_once_after_the_warm_up(small_detr, random_targets):
    graphs = _graphs(small_detr(), max_graphs=2)
    recorder: Any = graphs._recorder
    for index in range(12):
        graphs(*_inputs(random_targets, [1, 1], index, height=32 + 16 * (index % 2)), last=True)
    assert (recorder.runs, recorder.recorded) == (6, 2)
    with pytest.warns(UserWarning, match="for 2 shapes"):
        graphs(*_inputs(random_targets, [1, 1], height=64), last=True)
    graphs(*_inputs(random_targets, [1, 1], height=80), last=True)  # without another warning
    assert (recorder.runs, recorder.recorded) == (6, 2)
    graphs(*_inputs(random_targets, [5, 1]), last=True)  # does not fit, so that larger buffers are captured
    assert (recorder.runs, recorder.recorded) == (7, 2)


@pytest.mark.slow
def test_learning_rates_and_restored_moments_reach_the_graphs(small_detr, random_targets):
    model = small_detr(dropout=0.0)
    graphs = _graphs(model)
    optimizer, recorder = graphs._function.optimizer, graphs._recorder
    scheduler = LambdaLR(optimizer, lambda step: 0.5**step)
    inputs = _inputs(random_targets, [1, 2])
    for _ in range(2):
        graphs(*inputs, last=True)
        scheduler.step()
    rate = optimizer.param_groups[0]["lr"]
    assert isinstance(rate, Tensor)
    assert float(rate) == pytest.approx(1e-3 / 4)
    saved = deepcopy(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 0.0
    before = [parameter.clone() for parameter in model.parameters()]
    graphs(*inputs, last=True)
    assert optimizer.param_groups[0]["lr"] is rate
    assert not rate
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    assert recorder.resets == 1
    assert len(graphs._graphs) == 1
    optimizer.load_state_dict(saved)
    graphs(*inputs, last=True)
    assert recorder.resets == 2
    assert recorder.recorded == 0
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(1e-3 / 4)


def test_buffers_share_memory(random_targets):
    buffers = _graphs(nn.Linear(1, 1))._buffers
    large = buffers.like(0, torch.empty(2, 3, 8, 8).to(memory_format=torch.channels_last))
    small = buffers.like(0, torch.empty(2, 3, 4, 8))
    assert large.is_contiguous(memory_format=torch.channels_last)
    assert small.is_contiguous()
    assert large.data_ptr() == small.data_ptr()
    assert buffers.like(1, small).data_ptr() != small.data_ptr()
    assert buffers.like(0, torch.empty(3, 3, 8, 8)).data_ptr() != large.data_ptr()


def test_what_cannot_be_captured_is_refused(config, small_detr, random_targets):
    model = small_detr()
    with pytest.raises(ConfigError, match="needs a GPU, but the model is on cpu"):
        CapturedStep(model, detr_loss, _adamw(model))
    with pytest.raises(ConfigError, match="needs a GPU"):
        Trainer(config(capture=True))
    images, mask, targets = _inputs(random_targets, [1])
    with pytest.raises(TypeError, match=r"got list; Targets\.from_list"):
        _graphs(model)(images, mask, [{"labels": targets.labels}], last=True)


@pytest.mark.parametrize(("ranks", "scaler", "cause"), [(2, None, "several ranks"), (1, object(), "fp16")])
def test_runs_that_cannot_be_captured_are_refused(ranks, scaler, cause):
    accelerator: Any = SimpleNamespace(num_processes=ranks, scaler=scaler)
    check_capture(torch.device("cuda"), SimpleNamespace(num_processes=1, scaler=None))
    with pytest.raises(ConfigError, match=cause):
        check_capture(torch.device("cuda"), accelerator)


@pytest.mark.slow
def test_the_state_of_a_captured_run_is_restored_without_capture(config, small_detr, random_targets):
    """Its learning rates are tensors, and its optimizer is capturable."""
    states = [
        RunState(
            small_detr(dropout=0.0),
            config(capture=capture, ema_decay=0.9),
            build_accelerator(mixed_precision="no", device="cpu"),
            steps_per_epoch=9,
        )
        for capture in (True, False)
    ]
    steps = [
        StepFunction(
            state.model,
            detr_loss,
            state.optimizer,
            clip_norm=0.1,
            accumulate=1,
            moving_average=state.ema,
            accelerator=state.accelerator,
            keep_gradients=state is states[0],
        )
        for state in states
    ]
    captured = StepGraphs(steps[0], EagerRecorder(), torch.device("cpu"), 4, 16)  # type: ignore[arg-type]
    inputs = _inputs(random_targets, [1, 2])
    for _ in range(2):
        captured(*inputs, last=True)
        states[0].advance()
    assert isinstance(states[0].optimizer.param_groups[0]["lr"], Tensor)
    states[1].load(deepcopy(states[0].state_dict()))
    for _ in range(2):
        captured(*inputs, last=True)
        steps[1](*inputs, last=True)
        for state in states:
            state.advance()
        assert states[0].learning_rate == states[1].learning_rate == states[1].optimizer.param_groups[0]["lr"]
    weights = [state.state_dict() for state in states]
    for part in ("model", "ema"):
        for name, value in weights[0][part].items():
            torch.testing.assert_close(weights[1][part][name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.gpu
def test_an_optimizer_that_is_not_capturable_is_refused(small_detr):
    model = small_detr().to("cuda")
    with pytest.raises(ConfigError, match="capturable=True"):
        CapturedStep(model, detr_loss, _adamw(model))


@pytest.mark.gpu
def test_a_gradient_scaler_is_refused(config):
    with pytest.raises(ConfigError, match="fp16"):
        Trainer(config(capture=True, mixed_precision="fp16", device="cuda"))


def _on_gpu(model: nn.Module, *, capture: bool, **options: Any) -> CapturedStep:
    model.to("cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True, capturable=capture)
    return CapturedStep(model, detr_loss, optimizer, clip_norm=0.1, capture=capture, **options)


def _to_gpu(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value if value is None else value.to("cuda") for value in inputs)


@pytest.mark.gpu
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_captured_step_has_the_losses_of_the_eager_one(small_detr, random_targets, accumulate):
    models = [small_detr(dropout=0.0).to("cuda") for _ in range(2)]
    averages = [MovingAverage(model, 0.9) for model in models]
    eager, captured = (
        _on_gpu(model, capture=capture, moving_average=average, accumulate=accumulate, max_targets=4)
        for model, average, capture in zip(models, averages, (False, True), strict=True)
    )
    for index in range(20 * accumulate):
        sizes = [[2, 3], [0, 1], [4, 9], [0, 0]][index % 4]
        inputs = _to_gpu(_inputs(random_targets, sizes, index, height=32 if index % 3 else 48))
        last = index % accumulate == accumulate - 1
        actual, desired = captured(*inputs, last=last), eager(*inputs, last=last)
        assert actual.keys() == desired.keys()
        for name in [name for name in desired if name.startswith("loss")]:  # errors are percentages of a few queries
            torch.testing.assert_close(
                actual[name], desired[name], rtol=1e-2, atol=1e-3, msg=f"{name} of batch {index}"
            )
    raise_faults()
    assert any(graph.replay is not None for graph in captured._step._graphs.values())
    for pair in zip(averages[0].parameters(), averages[1].parameters(), strict=True):
        torch.testing.assert_close(*pair, rtol=1e-2, atol=1e-3)


@pytest.mark.gpu
def test_a_replay_does_not_wait_for_the_device(small_detr, random_targets):
    step = _on_gpu(small_detr(), capture=True)
    inputs = _to_gpu(_inputs(random_targets, [2, 3]))
    for _ in range(4):
        step(*inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_dropout_differs_between_replays(small_detr, random_targets):
    model = small_detr(dropout=0.5)
    step = _on_gpu(model, capture=True)
    step._step._function.optimizer.param_groups[0]["lr"] = 0.0
    inputs = _to_gpu(_inputs(random_targets, [2, 3]))
    losses = [float(step(*inputs)["loss"]) for _ in range(8)]
    assert len(set(losses)) == len(losses)


@pytest.mark.gpu
def test_a_generator_of_the_models_own_draws_anew_in_each_replay(random_targets):
    generator = torch.Generator("cuda").manual_seed(0)
    model = nn.Linear(4, 1)

    def loss(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        noise = torch.empty_like(x).normal_(generator=generator)
        return model(x).mean(), {"noise": noise.mean()}

    model.to("cuda")
    optimizer = _adamw(model, fused=True, capturable=True)
    step = CapturedStep(model, loss, optimizer, generators=[generator])
    drawn = [float(step(torch.ones(8, 4, device="cuda"))["noise"]) for _ in range(8)]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.gpu
def test_a_loss_that_reads_a_number_is_refused(random_targets):
    model = nn.Linear(4, 1).to("cuda")

    def loss(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        total = model(x).mean()
        return total / max(float(total.detach().abs()), 1.0), {}

    step = CapturedStep(model, loss, _adamw(model, fused=True, capturable=True))
    x = torch.ones(8, 4, device="cuda")
    for _ in range(3):
        step(x)
    with pytest.raises(ConfigError, match="cannot be captured"):
        step(x)


@pytest.mark.gpu
def test_a_captured_run_names_the_step_of_a_fault(config):
    trainer = Trainer(config(capture=True, device="cuda", log_every=1, epochs=4))
    train_batch = trainer._train_batch

    def spoiled(batch: Any, *, ends_step: bool) -> None:
        if trainer.state.progress.step == 8:
            batch.targets.labels.fill_(77)  # in place, so that the host does not know
        train_batch(batch, ends_step=ends_step)

    trainer._train_batch = spoiled
    with pytest.raises(RuntimeError, match=r"step 9, images \[.*label is out of range"):
        trainer.run()


@pytest.mark.gpu
def test_a_label_that_the_host_knows_is_refused_while_a_step_is_captured(config):
    trainer = Trainer(config(capture=True, device="cuda", epochs=4))
    train_batch = trainer._train_batch

    def spoiled(batch: Any, *, ends_step: bool) -> None:
        if trainer.state.progress.step == 3:
            batch.targets._set_max_label(77)
        train_batch(batch, ends_step=ends_step)

    trainer._train_batch = spoiled
    with pytest.raises(TrainingError, match=r"step 4, images \[.*label 77 is out of range"):
        trainer.run()


@pytest.mark.gpu
def test_a_captured_run_trains_evaluates_and_resumes(config):
    Trainer(config(capture=True, device="cuda", ema_decay=0.9, accumulate=2)).run()
    metrics = Trainer(config(capture=True, device="cuda", ema_decay=0.9, accumulate=2, epochs=4), resume=True).run()
    assert 0 <= metrics["AP"] <= 1

"""The training step: it asks the device for no number but where losses are logged, and its settings change no loss."""

from __future__ import annotations

from dataclasses import replace
from functools import partial, partialmethod
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode

from detr_fast import DETR, SetCriterion, Targets
from detr_fast.data import Batch
from detr_fast.training import ConfigError, Trainer, optim
from detr_fast.training import state as state_module
from detr_fast.training.device import fastest_memory_format
from detr_fast.training.monitor import LossMonitor
from detr_fast.training.ranks import build_accelerator
from detr_fast.training.state import RunState
from detr_fast.training.step import TrainingStep

READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::masked_select"}


class ReadRecorder(TorchDispatchMode):
    """Records the ops with which the host waits for a number of the device."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.name().split(".")[0] in READS:
            self.reads.append(function.name())
        return function(*args, **(kwargs or {}))


def _fake_batch(device: torch.device) -> Batch:
    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device=device)

    targets = Targets(empty(5, dtype=torch.int64), empty(5, 4), [2, 3], empty(3, dtype=torch.int32))
    mask = empty(2, 48, 64, dtype=torch.bool)
    return Batch(empty(2, 3, 48, 64), mask, True, targets, [1, 2], [(48, 64), (40, 64)])


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_step_with_fake_tensors_needs_no_number(config, small_detr, device, monkeypatch):
    settings = config(ema_decay=0.99, clip_norm=0.1, accumulate=2)
    accelerator = build_accelerator(mixed_precision="no", device=device)
    monkeypatch.setattr(DETR, "to", lambda self, *args, **kwargs: self)  # PyTorch cannot move fake parameters,
    monkeypatch.setattr(optim, "deepcopy", lambda model: small_detr())  # and copies the mode of the copied ones
    with FakeTensorMode(), torch.device(accelerator.device):
        state = RunState(small_detr(), settings, accelerator, steps_per_epoch=3)
        monitor = LossMonitor()
        step = TrainingStep(state, SetCriterion(), monitor, settings)
        for index in range(6):
            step(_fake_batch(accelerator.device), last=index % 2 == 1)
        assert state.learning_rate < settings.optim.lr
        with pytest.raises(DataDependentOutputException):
            monitor.means()


@pytest.mark.slow
def test_a_run_reads_numbers_back_where_it_logs_only(config, monkeypatch):
    trainer = Trainer(config(ema_decay=0.99, epochs=1))
    recorder, read_until = ReadRecorder(), [0]
    train_batch = trainer._train_batch

    def recorded(batch: Batch, *, ends_step: bool) -> None:
        with recorder:
            train_batch(batch, ends_step=ends_step)
        read_until.append(len(recorder.reads))

    monkeypatch.setattr(trainer, "_train_batch", recorded)
    monkeypatch.setattr(SetCriterion, "_warn_of_boxes", lambda *_: None)  # it reads boxes on a CPU only
    trainer.run()
    assert len(read_until) == 4
    assert all(before == after for before, after in pairwise(read_until)), recorder.reads
    with recorder:
        float(torch.zeros(()))
    assert recorder.reads == ["aten::_local_scalar_dense"]


def _batches(random_targets) -> list[Batch]:
    torch.manual_seed(0)
    batches = []
    for height, width in ((48, 64), (32, 48), (64, 64)):
        mask = torch.zeros(2, height, width, dtype=torch.bool)
        mask[1, :, 40:] = True
        images = torch.randn(2, 3, height, width) * ~mask[:, None]
        sizes = [(height, width), (height, 40)]
        batches.append(Batch(images, mask, True, random_targets([2, 3], 3), [1, 2], sizes))
    return batches


def _move(batch: Batch, device: str, memory_format: torch.memory_format) -> Batch:
    images = batch.images.to(device, memory_format=memory_format)
    return replace(batch, images=images, mask=batch.mask.to(device), targets=batch.targets.to(device))


def _losses(settings, model, batches, *, device: str = "cpu") -> list[float]:
    accelerator = build_accelerator(mixed_precision="no", device=device)
    state, monitor = RunState(model, settings, accelerator, steps_per_epoch=3), LossMonitor()
    step = TrainingStep(state, SetCriterion(), monitor, settings)
    losses = []
    for batch in batches:
        step(_move(batch, device, state.memory_format), last=True)
        losses.append(monitor.means()["loss"])
    return losses


@pytest.mark.slow
def test_a_model_is_compiled_at_most_once_for_each_shape(config, small_detr, random_targets, monkeypatch):
    """The number of graphs does not depend on what generates code from them."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    shapes = _batches(random_targets)
    expected = _losses(config(), small_detr(dropout=0.0), 3 * shapes)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert _losses(config(compile=True), small_detr(dropout=0.0), 3 * shapes) == pytest.approx(expected, rel=1e-3)
    assert 2 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2 * len(shapes)  # backbone and transformer


@pytest.mark.slow
def test_a_compiled_model_has_the_losses_of_the_eager_one(config, small_detr, random_targets):
    batches = 4 * _batches(random_targets)[:1]
    model = partial(small_detr, dropout=0.0, num_encoder_layers=0, num_decoder_layers=1)
    expected = _losses(config(), model(), batches)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert _losses(config(compile=True), model(), batches) == pytest.approx(expected, rel=1e-3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_a_compiled_model_is_saved_as_the_eager_one(config, small_detr):
    states = [
        RunState(
            small_detr(),
            config(compile=compiled, ema_decay=0.9),
            build_accelerator(mixed_precision="no", device="cpu"),
            steps_per_epoch=3,
        ).state_dict()
        for compiled in (False, True)
    ]
    for part in ("model", "ema"):
        assert states[0][part].keys() == states[1][part].keys()


def test_channels_last_changes_no_loss(config, small_detr, random_targets, monkeypatch):
    batches = _batches(random_targets)
    expected = _losses(config(), small_detr(backbone="resnet18", dropout=0.0), batches)
    monkeypatch.setattr(state_module, "fastest_memory_format", lambda device: torch.channels_last)
    model = small_detr(backbone="resnet18", dropout=0.0)
    assert _losses(config(), model, batches) == pytest.approx(expected, rel=1e-4)
    assert model.body.layer2[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
def test_convolutions_are_channels_last_on_a_gpu(config, small_detr, random_targets):
    batches = _batches(random_targets)
    expected = _losses(config(), small_detr(backbone="resnet18", dropout=0.0), batches)
    model = small_detr(backbone="resnet18", dropout=0.0)
    assert _losses(config(), model, batches, device="cuda") == pytest.approx(expected, rel=1e-3)
    assert model.body.layer2[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_memory_format_follows_the_device():
    assert fastest_memory_format(torch.device("cuda", 0)) is torch.channels_last
    assert fastest_memory_format(torch.device("cpu")) is torch.contiguous_format


@pytest.fixture
def tf32_restored():
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    yield
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


def test_tf32_is_a_setting(config, tf32_restored):
    for allowed in (True, False):
        Trainer(config(allow_tf32=allowed))
        assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is allowed


def test_automatic_precision_is_float32_on_a_cpu(config):
    assert Trainer(config(mixed_precision="auto")).accelerator.mixed_precision == "no"


@pytest.mark.gpu
def test_automatic_precision_is_bfloat16_on_a_gpu(config):
    assert Trainer(config(mixed_precision="auto", device="auto")).accelerator.mixed_precision == "bf16"


def test_another_precision_or_device_needs_another_process(config, tmp_path, monkeypatch):
    """As in a notebook, where a second run would otherwise train on the device of the first."""
    Trainer(config())
    kept = r"has trained or evaluated in precision 'no' on cpu, .* restart the process"
    with pytest.raises(ConfigError, match=kept):
        Trainer(config(mixed_precision="bf16", output=str(tmp_path / "other")))
    Trainer(config(output=str(tmp_path / "another")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match=kept):
        build_accelerator(mixed_precision="no", device="cuda")

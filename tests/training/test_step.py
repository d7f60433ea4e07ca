"""The training step asks the device for no number but where losses are logged."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode

from detr_fast import DETR, SetCriterion, Targets
from detr_fast.data import Batch
from detr_fast.training import Trainer, optim
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
    accelerator = build_accelerator(mixed_precision="no", cpu=device == "cpu")
    monkeypatch.setattr(DETR, "to", lambda self, device: self)  # PyTorch cannot move fake parameters,
    monkeypatch.setattr(optim, "deepcopy", lambda model: small_detr())  # and copies the mode of the copied ones
    with FakeTensorMode(), torch.device(accelerator.device):
        state = RunState(small_detr(), settings, accelerator, steps_per_epoch=3)
        monitor = LossMonitor()
        step = TrainingStep(state, SetCriterion(), monitor, settings.optim)
        for index in range(6):
            last = index % 2 == 1
            step.accumulate(_fake_batch(accelerator.device), last=last)
            if last:
                state.step()
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
    trainer.run()
    assert len(read_until) == 4
    assert all(before == after for before, after in pairwise(read_until)), recorder.reads
    with recorder:
        float(torch.zeros(()))
    assert recorder.reads == ["aten::_local_scalar_dense"]

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from detr_fast.models import CheckpointError
from detr_fast.training import Trainer
from detr_fast.training.config import as_plain_data
from detr_fast.training.monitor import read_metrics
from detr_fast.training.resume import APPLIED, FIXED, _flatten


def _is_in(name: str, table: tuple[str, ...]) -> bool:
    return any(name == entry or name.startswith(f"{entry}.") for entry in table)


def test_every_setting_is_in_exactly_one_table(config):
    for name, _ in _flatten(as_plain_data(config())):
        assert _is_in(name, APPLIED) != _is_in(name, FIXED), name


def _with(settings, **changes):
    """The configuration with other values, by the names of options with "__" for the dot."""
    for name, value in changes.items():
        part, _, option = name.rpartition("__")
        part_changed = replace(getattr(settings, part), **{option: value}) if part else value
        settings = replace(settings, **{part or option: part_changed})
    return settings


@pytest.fixture
def started(config):
    """The configuration of a run of which one epoch of two is complete."""
    settings = config(epochs=1, ema_decay=0.9)
    Trainer(settings).run()
    return replace(settings, epochs=2)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 7}, "seed 7 instead of 42"),
        ({"data__batch_size": 2}, "data.batch_size 2 in total on all ranks instead of 4"),
        ({"optim__accumulate": 2}, "optim.accumulate 2 instead of 1"),
        ({"optim__ema_decay": 0.5}, "optim.ema_decay 0.5 instead of 0.9"),
        ({"optim__ema_decay": 0.0}, "optim.ema_decay"),
        ({"model__num_heads": 4}, "model.num_heads 4 instead of 2"),  # the weights have the same shapes
        ({"model__weights": "elsewhere.pth"}, "model.weights elsewhere.pth instead of None"),
        ({"data__eval_size": 16}, "data.eval_size 16 instead of 32"),
    ],
)
def test_settings_that_cannot_change_are_refused_by_name(started, changes, named):
    with pytest.raises(CheckpointError, match=named):
        Trainer(_with(started, **changes), resume=True)
    recorded = yaml.safe_load((Path(started.output) / "config.yaml").read_text())
    assert recorded["epochs"] == 1  # config.yaml is that of the run


def test_fewer_epochs_than_are_done_are_refused(config):
    settings = config(epochs=2)
    Trainer(settings).run()
    with pytest.raises(CheckpointError, match="epochs is 1, but epoch 2 of the run has been started already"):
        Trainer(replace(settings, epochs=1), resume=True)


def test_settings_that_may_change_are_applied_and_recorded(started, capsys):
    changed = _with(
        started, optim__weight_decay=0.5, optim__lr=0.25, optim__clip_norm=3.0, model__dropout=0.0, loss__loss_giou=7.0
    )
    trainer = Trainer(changed, resume=True)
    assert "resuming with other settings" in capsys.readouterr().out
    assert all(group["weight_decay"] == 0.5 for group in trainer.state.optimizer.param_groups)
    assert trainer.state.scheduler.base_lrs[0] == 0.25
    assert trainer.state.optimizer.param_groups[0]["lr"] == pytest.approx(0.125)  # half of the cosine
    assert trainer.criterion.weights.loss_giou == 7.0
    assert {m.p for m in trainer.state.weights.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
    trainer.run()
    recorded = yaml.safe_load((Path(started.output) / "config.yaml").read_text())
    assert (recorded["optim"]["weight_decay"], recorded["epochs"]) == (0.5, 2)


def test_changed_data_are_refused_and_moved_data_are_not(started, tmp_path):
    content = json.loads(Path(started.data.train_annotations).read_text())
    moved = tmp_path / "moved.json"
    moved.write_text(json.dumps(content))
    Trainer(_with(started, data__train_annotations=str(moved)), resume=True)
    content["annotations"] = content["annotations"][1:]
    moved.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="data set train have changed"):
        Trainer(_with(started, data__train_annotations=str(moved)), resume=True)


def test_the_weights_to_start_from_are_not_needed_again(config, tmp_path):
    Trainer(config(epochs=1, output=str(tmp_path / "first"))).run()
    settings = config(epochs=1, weights=str(tmp_path / "first/model"), output=str(tmp_path / "second"))
    Trainer(settings).run()
    (tmp_path / "first/model").rename(tmp_path / "elsewhere")
    assert Trainer(settings, resume=True).state.progress.epoch == 1


@pytest.mark.slow
@pytest.mark.parametrize("fused", [True, False])
def test_runs_are_resumed_across_the_implementations_of_the_optimizer(config, tmp_path, fused):
    def losses(output: str, parts: list[tuple[int, bool]]) -> list[float]:
        settings = config(output=str(tmp_path / output), dropout=0.0, eval_every=9)
        for part, (epochs, is_fused) in enumerate(parts):
            trainer = Trainer(
                replace(settings, epochs=epochs, optim=replace(settings.optim, schedule="step")), resume=part > 0
            )
            for group in trainer.state.optimizer.param_groups:
                group["fused"] = is_fused
            trainer.run()
        rows = read_metrics(tmp_path / output / "metrics.jsonl")
        return [row["loss"] for row in rows if row["kind"] == "train"]

    expected = losses("one", [(1, fused), (2, fused)])
    assert losses("both", [(1, fused), (2, not fused)]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_restored_moments_have_the_strides_of_their_parameters(config):
    """The fused optimizer on a CPU reads parameters, gradients and moments in the order of their memory."""
    settings = config(epochs=1)
    trainer = Trainer(settings)
    trainer.run()
    saved = trainer.state.state_dict()
    for moments in saved["optimizer"]["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            if moments[name].dim() == 4:
                moments[name] = moments[name].to(memory_format=torch.channels_last)
    trainer.state.load(saved)
    for parameter, moments in trainer.state.optimizer.optimizer.state.items():
        assert moments["exp_avg"].stride() == moments["exp_avg_sq"].stride() == parameter.stride()

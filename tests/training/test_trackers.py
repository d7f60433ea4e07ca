"""The records of a run reach experiment trackers, which neither stop it nor split it when it is resumed."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker, TensorBoardTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detr_fast.training import ConfigError, Trainer
from detr_fast.training.monitor import read_metrics
from detr_fast.training.ranks import build_accelerator
from detr_fast.training.trackers import Tracker, start_trackers


def _losses(output: str) -> list[tuple[int, Any]]:
    """The step and the loss of each record of training in metrics.jsonl."""
    records = [r for r in read_metrics(Path(output) / "metrics.jsonl") if r["kind"] == "train"]
    return [(r["step"], pytest.approx(r["loss"], rel=1e-6)) for r in records]


def _board(output: str) -> EventAccumulator:
    """What Accelerate's tracker for TensorBoard wrote, beside the TensorBoard of every run."""
    return EventAccumulator(str(Path(output) / "detr_fast")).Reload()


@pytest.mark.slow
def test_records_reach_the_trackers(config):
    settings = config(trackers=["tensorboard"], epochs=1)
    trainer = Trainer(settings)
    trainer.run()
    logged = _board(settings.output)
    assert [(event.step, event.value) for event in logged.Scalars("train/loss")] == _losses(settings.output)
    assert len(logged.Scalars("eval/AP50")) == 1
    trainer.run()  # nothing is left to train: the model is scored again
    assert len(_board(settings.output).Scalars("eval/AP50")) == 2


@pytest.mark.parametrize(
    ("tracker", "message"),
    [
        ("wandp", "no tracker 'wandp'; it has .*wandb"),
        ("comet_ml", "the package of comet_ml is not installed; pip install comet_ml installs it"),
    ],
)
def test_trackers_that_cannot_log_are_refused(config, tracker, message):
    with pytest.raises(ConfigError, match=message):
        Trainer(config(trackers=[tracker]))


def test_a_tracker_that_cannot_start_is_named_before_the_first_step(config, monkeypatch):
    def fail(self: TensorBoardTracker) -> None:
        raise RuntimeError("no key")

    monkeypatch.setattr(TensorBoardTracker, "start", fail)
    trainer = Trainer(config(trackers=["tensorboard"]))
    with pytest.raises(ConfigError, match=r"^trackers: cannot start tensorboard: no key; train without them$"):
        trainer.run()
    assert trainer.state.progress.step == 0


@pytest.mark.slow
def test_a_run_outlives_its_tracker(config, monkeypatch, caplog):
    """The server is gone from the third step on."""
    log = TensorBoardTracker.log

    def fail(self: TensorBoardTracker, values: dict[str, float], step: int, **kwargs: Any) -> None:
        if step >= 3:
            raise ConnectionError("no server")
        log(self, values, step=step, **kwargs)

    monkeypatch.setattr(TensorBoardTracker, "log", fail)
    settings = config(trackers=["tensorboard"])
    Trainer(settings).run()
    assert [step for step, _ in _losses(settings.output)] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in _board(settings.output).Scalars("train/loss")] == [1, 2]
    warnings = [record.message for record in caplog.records if "no server" in record.message]
    assert warnings == [
        "tensorboard could not log step 3: no server; training continues",
        "tensorboard could not log step 3: no server; training continues",  # the evaluation
        "tensorboard could not log step 4: no server; training continues; it gets no more records of this run",
    ]


class Fragile(GeneralTracker):
    """Fails at some steps."""

    name = "fragile"
    requires_logging_directory = False
    tracker = None

    def __init__(self, fails_at: Callable[[int], bool]) -> None:
        super().__init__()
        self.fails_at, self.steps = fails_at, []

    def log(self, values: dict[str, float], step: int | None = None, **kwargs: Any) -> None:
        if self.fails_at(step):
            raise OSError("busy")
        self.steps.append(step)

    def finish(self) -> None:
        raise OSError("gone")


def test_a_tracker_that_fails_now_and_then_is_kept(caplog):
    fragile = Fragile(lambda step: step % 3 > 0)
    tracker = Tracker(fragile)
    for step in range(10):
        tracker.log({"loss": 1.0}, step)
    tracker.finish()
    assert fragile.steps == [0, 3, 6, 9]
    assert "no more records" not in caplog.text
    assert "could not finish the tracker fragile: gone" in caplog.text


def _start(name: str, directory: Path) -> list[Tracker]:
    """Start a tracker as a resumed run does."""
    accelerator = build_accelerator(mixed_precision="no", device="cpu", trackers=[name], directory=directory)
    return start_trackers(accelerator, directory, {"epochs": 1}, resumed=True)


@pytest.mark.parametrize("content", ["{", "[]", '{"wandb": 1}'])
def test_ids_that_cannot_be_read_are_named(tmp_path, content):
    (tmp_path / "trackers.json").write_text(content)
    with pytest.raises(ConfigError, match=r"cannot read .*trackers.json: .*; remove it, so that new runs"):
        _start("tensorboard", tmp_path)


@pytest.mark.slow
def test_a_new_run_does_not_continue_that_of_an_earlier_one(config):
    settings = config(epochs=1)
    ids = Path(settings.output) / "trackers.json"
    ids.parent.mkdir(parents=True, exist_ok=True)
    ids.write_text('{"mlflow": "of a run whose checkpoints have been removed"}')
    Trainer(settings).run()
    assert not ids.exists()  # with a tracker, --resume would continue that run


@pytest.mark.slow
def test_a_resumed_run_continues_in_mlflow(config, tmp_path, monkeypatch, caplog):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    Trainer(config(epochs=1, trackers=["mlflow"])).run()
    settings = config(epochs=2, trackers=["mlflow"])
    Trainer(settings, resume=True).run()

    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'detr_fast'")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == _losses(settings.output)
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "eval/AP50")] == [3, 6]
    assert run.data.params["model.hidden_dim"] == "16"
    assert run.data.params["epochs"] == "1"
    assert "mlflow did not take the settings, which config.yaml has: Changing param values" in caplog.text

    client.delete_run(run.info.run_id)
    output = Path(settings.output)
    with pytest.raises(ConfigError, match=r"cannot start mlflow: .*, or remove .*trackers.json, so that new runs"):
        _start("mlflow", output)
    (output / "trackers.json").unlink()
    (tracker,) = _start("mlflow", output)
    tracker.finish()
    assert json.loads((output / "trackers.json").read_text())["mlflow"] != run.info.run_id


@pytest.mark.slow
def test_a_resumed_run_continues_in_wandb(config, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_SILENT", "true")
    Trainer(config(epochs=1, trackers=["wandb"])).run()
    settings = config(epochs=2, trackers=["wandb"])
    Trainer(settings, resume=True).run()

    ids, configurations, losses = set(), [], []
    for path in sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb")):
        for record in _read_wandb(path):
            if record.HasField("run"):
                ids.add(record.run.run_id)
            updates = {".".join(item.nested_key) or item.key: item.value_json for item in record.config.update}
            configurations += [updates] if "epochs" in updates else []
            values = {".".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            if "train/loss" in values:
                losses.append((int(values["_step"]), float(values["train/loss"])))
    assert len(ids) == 1
    assert losses == _losses(settings.output)
    assert [updates["epochs"] for updates in configurations] == ["1", "2"]


def _read_wandb(path: Path) -> Iterator[Any]:
    """The records of an offline run: seven bytes, then blocks of 32 KiB of LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, content = path.read_bytes(), 7, b""
    while position < len(data):
        if (left := -position % 2**15) and left < 7:  # no header fits into the rest of the block
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        content += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a complete record, or the last part of one
            yield Record.FromString(content)
            content = b""

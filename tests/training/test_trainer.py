from __future__ import annotations

import json
import logging
import re
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from detr_fast import DETR
from detr_fast.data import DataError
from detr_fast.models import CheckpointError
from detr_fast.models.resnet import build_backbone
from detr_fast.training import ConfigError, Stopped, Trainer, TrainingError
from detr_fast.training.monitor import read_metrics
from detr_fast.training.run_checkpoint import load_checkpoint


def _weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.clone() for name, p in trainer.state.weights.state_dict().items()}


def _same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_leaves_what_it_promises(config, capsys):
    settings = config(ema_decay=0.99, checkpoint_every=1)
    metrics = Trainer(settings).run()
    assert re.search(r"epoch 2/2.*loss \d+\.\d{3}, best AP \d\.\d{3}, lr", capsys.readouterr().err)
    output = Path(settings.output)
    metrics_file = json.loads((output / "metrics.json").read_text())
    assert metrics_file["AP50"] == metrics["AP50"]
    records = read_metrics(output / "metrics.jsonl")
    assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    evaluations = [r for r in records if r["kind"] == "eval"]
    assert [r["step"] for r in evaluations] == [3, 6]
    assert 0 < evaluations[0]["seconds"] < evaluations[1]["seconds"] == metrics_file["seconds"]
    assert all(0 < r["loss"] < 100 for r in evaluations)
    assert {"loss", "loss_ce_0", "class_error", "lr", "images_per_second", "grad_norm"} <= records[0].keys()
    for name in ("training_images", "curves", "predictions", "precision_recall", "confusion_matrix"):
        with Image.open(output / f"{name}.png") as image:
            assert min(image.size) > 200
    assert yaml.safe_load((output / "config.yaml").read_text())["model"]["hidden_dim"] == 16
    files = {path.name for path in (output / "checkpoints").iterdir()}
    assert files == {"last.pt", "previous.pt", "best.pt", "epoch-0001.pt", "epoch-0002.pt"}
    assert any((output / "tensorboard").iterdir())

    saved = DETR.from_pretrained(output / "model")
    assert [c["name"] for c in saved.categories] == ["triangle", "circle", "rectangle"]
    assert saved.image_size == 32
    best = load_checkpoint(output / "checkpoints" / "best.pt")
    assert _same(saved.state_dict(), {k.removeprefix("module."): v for k, v in best["ema"].items() if "module." in k})


@pytest.mark.slow
def test_learns(config):
    """On a dozen images the losses fall to a fraction."""
    settings = config(epochs=60, eval_every=60, dropout=0.0, log_every=3)
    Trainer(settings).run()
    losses = [r["loss"] for r in read_metrics(Path(settings.output) / "metrics.jsonl") if r["kind"] == "train"]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.slow
def test_same_seed_same_weights_whatever_the_workers(config, tmp_path):
    runs = []
    for name, workers, seed in (("a", 0, 1), ("b", 2, 1), ("c", 0, 2)):
        trainer = Trainer(config(output=str(tmp_path / name), num_workers=workers, seed=seed, epochs=1))
        trainer.run()
        runs.append(_weights(trainer))
    assert _same(runs[0], runs[1])
    assert not _same(runs[0], runs[2])


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [1, 3, 4])
def test_stopping_and_resuming_changes_nothing(config, tmp_path, stop_after, monkeypatch):
    """Dropout, moving average and accumulation on; stopped within and at the end of an epoch."""
    options = {"ema_decay": 0.9, "accumulate": 2, "batch_size": 2, "epochs": 3, "eval_every": 2}
    complete = Trainer(config(output=str(tmp_path / "complete"), **options))
    complete.run()

    settings = config(output=str(tmp_path / "parts"), **options)
    first = Trainer(settings)
    advance = first.state.advance

    def advance_then_ask() -> None:
        advance()
        if first.state.progress.step + 1 == stop_after:
            import signal

            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(first.state, "advance", advance_then_ask)
    with pytest.raises(Stopped, match=f"stopped by SIGTERM after step {stop_after}; the checkpoint is .*last"):
        first.run()
    second = Trainer(settings, resume=True)
    assert second.state.progress.step == stop_after
    second.run()
    assert _same(_weights(complete), _weights(second))
    logged = [
        [
            {k: v for k, v in r.items() if k not in ("images_per_second", "seconds")}
            for r in read_metrics(tmp_path / run / "metrics.jsonl")
        ]
        for run in ("complete", "parts")
    ]
    assert logged[0] == logged[1]


@pytest.mark.slow
def test_a_finished_run_can_be_made_longer(config):
    Trainer(config(epochs=1)).run()
    longer = Trainer(config(epochs=2), resume=True)
    assert longer.state.progress.epoch == 1
    longer.run()
    assert longer.state.progress.step == 6
    # Nothing is left to train: the model is scored again.
    assert "AP50" in Trainer(config(epochs=2), resume=True).run()


@pytest.mark.slow
def test_a_run_ends_early_without_progress(config, capsys):
    """Without a learning rate, no evaluation is better than the first."""
    settings = config(epochs=9, patience=2, lr=0.0, backbone_lr=0.0)
    trainer = Trainer(settings)
    trainer.run()
    assert (trainer.state.progress.epoch, trainer.state.progress.evaluations_since_best) == (3, 2)
    assert "AP has not risen for 2 evaluations; the run ends early" in capsys.readouterr().out
    evaluations = [r["epoch"] for r in read_metrics(Path(settings.output) / "metrics.jsonl") if r["kind"] == "eval"]
    assert evaluations == [0, 1, 2]
    again = Trainer(settings, resume=True)
    again.run()
    assert again.state.progress.epoch == 3
    longer = Trainer(config(epochs=5, lr=0.0, backbone_lr=0.0), resume=True)
    longer.run()
    assert longer.state.progress.epoch == 5


def test_a_rate_that_is_never_lowered_is_told(config, tmp_path, caplog):
    Trainer(config(schedule="step", drop_epoch=1))
    assert "never lowered" not in caplog.text
    Trainer(config(schedule="step", drop_epoch=2, output=str(tmp_path / "other")))
    assert "drop_epoch is 2 and epochs is 2, so that the learning rate is never lowered" in caplog.text


def test_a_backbone_that_does_not_learn_is_named(config, tmp_path, capsys):
    Trainer(config())
    assert "does not learn" not in capsys.readouterr().out
    Trainer(config(backbone="resnet18", output=str(tmp_path / "random")))
    assert "resnet18 has random weights and frozen batch norms, with which it does not learn" in capsys.readouterr().out
    weights = tmp_path / "resnet18.pth"
    torch.save(build_backbone("resnet18").state_dict(), weights)
    Trainer(config(backbone="resnet18", backbone_weights=str(weights), output=str(tmp_path / "trained")))
    assert "does not learn" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_frozen_backbone_can_be_trained_later(config):
    settings = config(backbone_lr=0.0, epochs=1)
    trainer = Trainer(settings)
    before = {name: tensor.clone() for name, tensor in trainer.state.weights.state_dict().items()}
    trainer.run()

    def changed() -> set[bool]:
        now = trainer.state.weights.state_dict()
        return {name.startswith("backbone.") for name in now if not torch.equal(now[name], before[name])}

    assert changed() == {False}
    trainer = Trainer(replace(settings, epochs=2, optim=replace(settings.optim, backbone_lr=1e-3)), resume=True)
    trainer.run()
    assert changed() == {False, True}


def test_a_run_is_not_overwritten(config):
    Trainer(config(epochs=1)).run()
    with pytest.raises(CheckpointError, match=r"already contains a run; continue it with --resume .*resume=True"):
        Trainer(config(epochs=1))


@pytest.mark.slow
def test_a_checkpoint_cut_in_half_gives_way_to_the_one_before(config, caplog):
    settings = config(checkpoint_steps=1)
    Trainer(settings).run()
    last = Path(settings.output) / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    with caplog.at_level(logging.WARNING):
        trainer = Trainer(settings, resume=True)
    assert "last.pt is damaged or not a checkpoint" in caplog.text
    assert "previous.pt instead" in caplog.text
    assert trainer.state.progress.step == 6
    for path in last.parent.glob("*.pt"):
        path.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="none of the checkpoints can be read"):
        Trainer(settings, resume=True)


def test_a_checkpoint_of_another_model_is_refused(config):
    Trainer(config(epochs=1)).run()
    with pytest.raises(CheckpointError, match="written with another configuration"):
        Trainer(config(epochs=1, hidden_dim=32), resume=True)


def test_a_full_disk_costs_no_checkpoint_and_no_training(config, caplog):
    settings = config(checkpoint_steps=1, epochs=1)
    trainer = Trainer(settings)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    advance = trainer.state.advance

    def fill_the_disk_at_step_2() -> None:
        advance()
        # Writes beyond this size fail with an OSError, as they do on a full disk.
        limit = 20_000 if trainer.state.progress.step == 1 else soft
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

    trainer.state.advance = fill_the_disk_at_step_2
    try:
        with caplog.at_level(logging.WARNING):
            trainer.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "could not write" in caplog.text
    assert "training continues, and a checkpoint is written again later" in caplog.text
    assert load_checkpoint(Path(settings.output) / "checkpoints" / "last.pt")["progress"]["epoch"] == 1


def test_the_last_checkpoint_must_be_written(config):
    settings = config(epochs=1)
    trainer = Trainer(settings)
    blocked = Path(settings.output) / "checkpoints"
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("a file where the directory should be")
    with pytest.raises(CheckpointError, match=r"could not write .*last\.pt"):
        trainer.run()


def test_a_loss_that_is_not_finite_names_step_images_and_term(config):
    settings = config(checkpoint_steps=1)
    trainer = Trainer(settings)
    criterion = trainer.criterion.forward

    def break_at_step_3(*inputs):
        output = criterion(*inputs)
        if trainer.state.progress.step == 2:
            output.terms["loss_giou_0"].fill_(float("inf"))
            return output._replace(total=output.total * float("nan"))
        return output

    trainer.criterion.forward = break_at_step_3
    with pytest.raises(TrainingError, match=r"step 3, images \[[\d, ]+\]: loss_giou_0 is inf; the last good"):
        trainer.run()
    kept = load_checkpoint(Path(settings.output) / "checkpoints" / "last.pt")
    assert kept["progress"]["step"] == 2
    assert all(value.isfinite().all() for value in kept["model"].values())


def test_weights_that_are_not_finite_are_named_by_the_matcher(config):
    trainer = Trainer(config())
    with torch.no_grad():
        trainer.state.weights.class_embed.weight.fill_(float("nan"))
    with pytest.raises(
        TrainingError, match=r"step 1, images .*: layer 0, image 0, target 0: the matching cost contains NaN"
    ):
        trainer.run()


@pytest.mark.parametrize("precision", ["bf16"])
def test_mixed_precision_trains(config, precision):
    trainer = Trainer(config(mixed_precision=precision, epochs=1))
    trainer.run()
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in trainer.state.weights.parameters())


def test_fine_tuning_takes_all_but_the_class_head(config, tmp_path, caplog):
    Trainer(config(epochs=1, output=str(tmp_path / "first"))).run()
    other = DETR.from_pretrained(tmp_path / "first" / "model", num_classes=7)
    other.save_pretrained(tmp_path / "seven")
    with caplog.at_level(logging.WARNING):
        trainer = Trainer(config(weights=str(tmp_path / "seven"), output=str(tmp_path / "second")))
    assert "7 classes, the model's for 3" in caplog.text
    assert torch.equal(trainer.state.weights.query_embed.weight, other.query_embed.weight)


def test_bad_configurations_name_their_part(config, shapes, tmp_path):
    with pytest.raises(ConfigError, match="model: hidden_dim"):
        Trainer(config(num_heads=3))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Trainer(config(weights=str(tmp_path / "nowhere.pth")))
    content = json.loads((shapes / "annotations/instances_train.json").read_text())
    (tmp_path / "none.json").write_text(json.dumps(content | {"annotations": []}))
    with pytest.raises(DataError, match="nothing to learn"):
        Trainer(config(train_annotations=str(tmp_path / "none.json")))


@pytest.mark.slow
def test_a_truncated_image_is_replaced_and_reported(config, shapes, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(shapes / "train", broken)
    victim = sorted(broken.iterdir())[3]
    victim.write_bytes(victim.read_bytes()[:200])
    trainer = Trainer(config(train_images=str(broken), epochs=1))
    with pytest.warns(RuntimeWarning, match="unreadable image"):
        trainer.run()
    assert "1 x unreadable image" in trainer.data.train.dataset.describe()


PARTS = {
    "backbone": ["backbone.0."],
    "encoder": ["input_proj.", "transformer.encoder."],
    "decoder": ["transformer.decoder."],
    "queries": ["query_embed."],
    "class_head": ["class_embed."],
    "box_head": ["bbox_embed."],
}


@pytest.mark.parametrize("part", PARTS)
def test_frozen_parts_are_not_trained(config, part):
    trainer = Trainer(config(epochs=1, freeze=[part]))
    before = {name: tensor.clone() for name, tensor in trainer.state.weights.named_parameters()}
    trainer.run()
    for name, tensor in trainer.state.weights.named_parameters():
        frozen = name.startswith(tuple(PARTS[part]))
        assert torch.equal(tensor, before[name]) == frozen, name
        assert (tensor.grad is None) or not frozen


def test_a_model_without_a_trainable_part_is_refused(config):
    with pytest.raises(ConfigError, match=r"model\.freeze: .* nothing is left to train"):
        Trainer(config(freeze=list(PARTS)))
    with pytest.raises(ConfigError, match=r"model\.freeze must be"):
        Trainer(config(freeze=["neck"]))


def test_another_number_of_queries_starts_from_weights(config, tmp_path, caplog):
    Trainer(config(epochs=1, output=str(tmp_path / "first"))).run()
    queries = DETR.from_pretrained(tmp_path / "first").query_embed.weight
    trainer = Trainer(config(weights=str(tmp_path / "first"), num_queries=len(queries) + 3, output=str(tmp_path / "b")))
    assert torch.equal(trainer.state.weights.query_embed.weight[:-3], queries)
    assert f"loaded the first {len(queries)}; the others have to be trained" in caplog.text


def test_records_are_read_from_the_directory_of_a_run(config, tmp_path):
    settings = config(epochs=1)
    with pytest.raises(
        FileNotFoundError, match=r"run.metrics.jsonl does not exist; give the output directory of a run"
    ):
        read_metrics(Path(settings.output) / "metrics.jsonl")
    Trainer(settings).run()
    records = read_metrics(settings.output)
    assert [(record["kind"], record["step"]) for record in records] == [
        ("train", 1),
        ("train", 2),
        ("train", 3),
        ("eval", 3),
    ]
    file = Path(settings.output) / "metrics.jsonl"
    file.write_text(file.read_text()[:-5])  # killed while it wrote
    assert read_metrics(file) == records[:-1]

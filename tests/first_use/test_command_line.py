"""The first afternoon at the command line, with data of one's own: train, stop, go on, evaluate, predict, fine-tune.

Wrong options, missing files and what a run writes are in tests/test_cli.py; runs that are killed, and runs on several
ranks, in tests/training/test_processes.py.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image, ImageOps

from detr_fast import cli
from detr_fast.training import Trainer
from tests.first_use.photographs import HEIGHT, WIDTH, DataSet, save_photograph

SMALL = [
    *("--model.backbone", "resnet_tiny", "--model.hidden_dim", "16", "--model.num_heads", "2"),
    *("--model.num_encoder_layers", "1", "--model.num_decoder_layers", "1", "--model.num_queries", "6"),
    *("--data.augmentation.scales", "[32]", "--data.augmentation.crop", "0", "--data.eval_size", "32"),
    *("--data.num_workers", "0", "--epochs", "1", "--device", "cpu"),
]


def _train(data: DataSet, output: Path, *options: str) -> list[str]:
    images, annotations = data.options()[1], data.options()[3]
    paths = ["--data.train_images", images, "--data.train_annotations", annotations]
    paths += ["--data.val_images", images, "--data.val_annotations", annotations]
    return ["train", *paths, *SMALL, "--output", str(output), *options]


def _run(arguments: list[str]) -> Any:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    return stopped.value.code or 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output directory of a run."""
    root = tmp_path_factory.mktemp("first use")
    assert _run(_train(DataSet(root / "data"), root / "run")) == 0
    return root / "run"


def test_the_command_that_training_ends_with_predicts(
    data: DataSet, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    output = tmp_path / "my run"
    assert _run(_train(data, output)) == 0
    line = caplog.messages[-1]
    assert line.startswith(f"{output} has the best model in model, and curves.png, predictions.png and metrics.json")
    assert {"model", "curves.png", "predictions.png", "metrics.json"} <= {path.name for path in output.iterdir()}
    command = shlex.split(line.split("to use the model: ")[1])
    monkeypatch.chdir(tmp_path)
    assert _run([str(data.images) if word == "IMAGES" else word for word in command[1:]]) == 0
    assert len(json.loads((tmp_path / "predictions/predictions.json").read_text())) == 5


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("train", "--data.train_images, --data.train_annotations, --data.val_images, --data.val_annotations"),
        ("eval", "--model, --images, --annotations"),
        ("convert", "source, target"),
    ],
)
def test_options_that_are_missing_are_named_as_they_are_written(
    command: str, options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run([command]) == 2
    assert f"are required: {options} (see detr-fast {command} --help)" in capsys.readouterr().err


def test_an_image_of_another_size_is_one_line_in_the_log(
    data: DataSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data.content["images"][0]["width"] = WIDTH + 2
    data.write()
    assert _run(_train(data, tmp_path / "run")) == 0
    (training, validation) = [message for message in caplog.messages if "wrong image size" in message]
    assert training == validation  # the data are the same here
    assert training == (
        f"{data.images}/1.png, image 1: wrong image size: the image is {WIDTH} x {HEIGHT}, the annotation file says "
        f"{WIDTH + 2} x {HEIGHT}"
    )


def test_images_of_12_bits_are_counted_and_not_warned_of(
    data: DataSet, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(1, 6):
        save_photograph(data.images / f"{number}.png", "12 bits")
    assert _run(_train(data, tmp_path / "run")) == 0
    assert not [message for message in caplog.messages if ".png" in message and "image " in message]
    output = capsys.readouterr()
    assert "5 x image with an assumed range of values (scaled)" in output.out
    assert "Warning" not in output.err


@pytest.mark.parametrize("command", ["train", "demo"])
def test_the_advice_of_an_interrupted_run_continues_it(
    command: str,
    data: DataSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = _train(data, tmp_path / "run", "--data.batch_size", "1")
    if command == "demo":
        monkeypatch.setattr(cli, "DEMO_IMAGES", {"num_train": 3, "num_val": 1})
        monkeypatch.chdir(tmp_path)
        arguments = ["demo", *SMALL, "--data.batch_size", "1", "--output", str(tmp_path / "run")]
    train_batch = Trainer._train_batch

    def interrupt(self: Trainer, *batch: Any, **options: Any) -> None:
        train_batch(self, *batch, **options)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as interrupted:
        interrupted.setattr(Trainer, "_train_batch", interrupt)
        assert _run(arguments) == 128 + signal.SIGINT
    advice = capsys.readouterr().err.splitlines()[-1]
    assert advice.endswith("to continue, run the same command with --resume")
    assert _run([*arguments, "--resume"]) == 0
    assert "resuming in epoch 1, after step 1" in capsys.readouterr().out


def test_a_checkpoint_in_place_of_the_model_says_where_the_model_is(trained: Path, tmp_path: Path) -> None:
    message = _run(["predict", str(tmp_path), "--model", str(trained / "checkpoints/best.pt")])
    assert "the stages of the checkpoint's backbone have" in message
    directory = message.split("; ")[-1].split(" is the saved model of this run")[0]
    save_photograph(tmp_path / "a.png")
    assert _run(["predict", str(tmp_path / "a.png"), "--model", directory, "--output", str(tmp_path / "out")]) == 0


def test_a_misspelled_model_is_found_out_without_a_network(trained: Path, tmp_path: Path) -> None:
    message = _run(["predict", str(tmp_path), "--model", str(trained / "modle")])
    assert message == f"detr-fast: {trained}/modle: there is no such file or directory; did you mean {trained}/model?"


def test_a_repository_that_cannot_be_reached_is_one_error(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Attempts are not logged one by one; the name may be that of a directory, too."""

    def fail(*arguments: Any, **options: Any) -> str:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise LocalEntryNotFoundError("there is no network")

    monkeypatch.setattr("detr_fast.models.saved_files.hf_hub_download", fail)
    monkeypatch.chdir(trained.parent)
    caplog.set_level(logging.INFO)
    message = _run(["predict", str(tmp_path), "--model", "run/modle"])
    assert message.startswith("detr-fast: run/modle: there is no such file or directory, and no repository of that")
    assert message.endswith("; did you mean run/model?")
    looking = "run/modle is no file or directory; looking for it on the Hugging Face Hub, for up to a minute"
    assert caplog.messages == [looking]


def test_fine_tuning_another_architecture_names_the_configuration_that_fits(
    trained: Path, data: DataSet, tmp_path: Path
) -> None:
    for weights in (trained, trained / "model", trained / "checkpoints/best.pt"):
        options = ["--model.hidden_dim", "32", "--model.weights", str(weights)]
        message = _run(_train(data, tmp_path / "run", *options))
        assert "hidden_dim=16, but the arguments say 32" in message
        (configuration,) = re.findall(r"--config (.*)$", message)
        assert configuration == str(trained / "config.yaml")
    data.content["categories"] = data.content["categories"][:1]
    data.content["annotations"] = data.content["annotations"][1::2]
    data.write()
    arguments = ["--config", configuration, "--model.weights", str(trained), *_train(data, tmp_path / "run")[1:9]]
    assert _run(["train", *arguments, "--output", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run/model/config.json").read_text())["num_classes"] == 1


def test_a_photograph_is_predicted_as_viewers_show_it(trained: Path, tmp_path: Path) -> None:
    photograph = save_photograph(tmp_path / "camera.jpg", "turned")
    arguments = ["predict", str(photograph), "--model", str(trained), "--threshold", "0"]
    assert _run([*arguments, "--output", str(tmp_path / "out")]) == 0
    (record,) = json.loads((tmp_path / "out/predictions.json").read_text())
    with Image.open(photograph) as stored, Image.open(tmp_path / "out" / record["drawing"]) as drawing:
        assert stored.height > stored.width
        assert drawing.width * stored.width == drawing.height * stored.height
        upright = ImageOps.exif_transpose(stored)
    assert max(box["box"][2] for box in record["detections"]) <= upright.width
    assert any(box["box"][2] > stored.width for box in record["detections"])

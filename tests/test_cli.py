from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import detr_fast
from detr_fast import cli
from detr_fast.data import make_shapes
from detr_fast.nn.feed_forward import ACTIVATIONS
from detr_fast.ops.dispatch import OPS
from detr_fast.training import Trainer

MODEL = [
    *("--model.backbone", "resnet_tiny", "--model.hidden_dim", "16", "--model.num_heads", "2"),
    *("--model.num_encoder_layers", "1", "--model.num_decoder_layers", "1", "--model.num_queries", "6"),
    *("--data.augmentation.scales", "[32]", "--data.augmentation.crop", "0", "--data.eval_size", "32"),
    *("--data.num_workers", "0", "--epochs", "1", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("cli") / "shapes", 6, 4, image_size=32)


def _data(shapes: Path) -> list[str]:
    return [
        *("--data.train_images", str(shapes / "train")),
        *("--data.train_annotations", str(shapes / "annotations/instances_train.json")),
        *("--data.val_images", str(shapes / "val")),
        *("--data.val_annotations", str(shapes / "annotations/instances_val.json")),
    ]


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    """A trained model, by the command line."""
    output = tmp_path_factory.mktemp("cli") / "run"
    assert _exit_code(["train", *_data(shapes), *MODEL, "--output", str(output)]) == 0
    return output


def _exit_code(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    return stopped.value.code or 0


def _error(arguments: list[str], capsys) -> str:
    code = _exit_code(arguments)
    assert code != 0
    return code if isinstance(code, str) else capsys.readouterr().err


def test_train_prints_ap_and_ap50_last(shapes, tmp_path, capsys):
    _exit_code(["train", *_data(shapes), *MODEL, "--output", str(tmp_path / "run")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("AP ")
    assert lines[-1].startswith("AP50 ")


def test_eval_repeats_the_runs_metrics(run, shapes, tmp_path, capsys):
    arguments = ["--images", str(shapes / "val"), "--annotations", str(shapes / "annotations/instances_val.json")]
    result = tmp_path / "metrics.json"
    assert _exit_code(["eval", "--model", str(run / "model"), *arguments, "--output", str(result)]) == 0
    expected, actual = json.loads((run / "metrics.json").read_text()), json.loads(result.read_text())
    for name, value in actual.items():
        assert value == pytest.approx(expected[name], abs=1e-6), name


def test_eval_draws_figures(run, shapes, tmp_path):
    arguments = ["--images", str(shapes / "val"), "--annotations", str(shapes / "annotations/instances_val.json")]
    assert _exit_code(["eval", "--model", str(run), *arguments, "--figures", str(tmp_path / "new/figures")]) == 0
    names = {path.name for path in (tmp_path / "new/figures").iterdir()}
    assert names == {"predictions.png", "precision_recall.png", "confusion_matrix.png"}


def test_predict_draws_and_writes(run, shapes, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes((shapes / "val" / "000000.png").read_bytes()[:60])
    output = tmp_path / "out"
    arguments = ["predict", str(shapes / "val"), str(broken), "--model", str(run / "model"), "--output", str(output)]
    assert _exit_code([*arguments, "--threshold", "0.01"]) == 1
    assert "broken.png: cannot read this image" in capsys.readouterr().err
    records = json.loads((output / "predictions.json").read_text())
    assert len(records) == 4
    for record in records:
        with Image.open(output / record["drawing"]) as drawing:
            assert drawing.width >= 320
        for found in record["detections"]:
            assert found["name"] in ("triangle", "circle", "rectangle")
            assert found["category_id"] in (3, 7, 12)
            assert all(0 <= x <= 32 for x in found["box"])
    assert any(record["detections"] for record in records)


def test_predict_draws_the_attention_of_each_detection(run, shapes, tmp_path):
    arguments = ["predict", str(shapes / "val/000000.png"), "--model", str(run), "--output", str(tmp_path)]
    assert _exit_code([*arguments, "--threshold", "0.01", "--attention"]) == 0
    (record,) = json.loads((tmp_path / "predictions.json").read_text())
    drawings = {path.name for path in tmp_path.glob("*.png")} - {record["drawing"]}
    assert drawings == {f"00000-000000-attention-{k}.png" for k in range(len(record["detections"]))}
    assert drawings


def test_check_data(shapes, tmp_path, capsys):
    annotations = shapes / "annotations/instances_val.json"
    arguments = ["check-data", "--images", str(shapes / "val"), "--annotations"]
    assert _exit_code([*arguments, str(annotations)]) == 0
    assert capsys.readouterr().out == "no faults\n"
    content = json.loads(annotations.read_text())
    content["annotations"][0]["bbox"][2] = -1
    content["annotations"][1]["category_id"] = 99
    faulty = tmp_path / "faulty.json"
    faulty.write_text(json.dumps(content))
    assert _exit_code([*arguments, str(faulty), "--figures", str(tmp_path / "drawn")]) == 1
    images = {entry["image_id"] for entry in content["annotations"][:2]}
    assert len(list((tmp_path / "drawn").glob("*.png"))) == len(images)
    output = capsys.readouterr().out
    assert "box without area" in output
    assert "there is no category 99" in output
    assert "2 faults" in output


def test_info_names_every_op(capsys, monkeypatch):
    cli.main(["info"])
    output = capsys.readouterr().out
    for op in ("sine_position_encoding", "sine_coordinate_embedding", "pairwise_box_iou", "pairwise_box_l1"):
        assert f"  {op}: reference\n    triton: " in output
    for op in ("batch_linear_sum_assignment", "match_cost", "set_loss, weighted_set_loss"):
        assert f"  {op}: cpp\n    triton: " in output
    assert "  linear_sum_assignment: cpp\n    scipy: available\n    reference: available" in output
    assert all(name in output for op in OPS.values() for name in op.public_names)
    monkeypatch.setenv("DETR_FAST_BACKEND", "linear_sum_assignment=scipy")
    cli.main(["info"])
    assert "  linear_sum_assignment: scipy" in capsys.readouterr().out


def test_wrong_key_in_the_yaml(tmp_path, capsys):
    path = tmp_path / "typo.yaml"
    path.write_text("optim:\n  learning_rate: 0.1\n")
    assert "learning_rate" in _error(["train", "--config", str(path)], capsys)


def test_wrong_values_name_their_field(shapes, capsys):
    assert "optim.lr" in _error(["train", *_data(shapes), "--optim.lr", "fast"], capsys)
    assert "flip is a probability" in _error(["train", *_data(shapes), "--data.augmentation.flip", "2"], capsys)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the annotation file is empty"),
        (b'{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "at least one image"),
        (b'{"images": [1], "annotati', "cut short"),
    ],
)
def test_bad_annotation_files(shapes, tmp_path, content, message, capsys):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    arguments = ["train", *_data(shapes), "--data.train_annotations", str(path), "--output", str(tmp_path / "run")]
    assert message in _error([*arguments, *MODEL], capsys)


@pytest.mark.parametrize("name", ["detr_r50", "detr_r50_fast", "detr_r50_mmdet3", "small", "demo"])
def test_shipped_configurations(name, monkeypatch, capsys):
    built = []
    monkeypatch.setattr(Trainer, "__init__", lambda self, config, resume: built.append(config) or sys_exit())

    def sys_exit():
        raise SystemExit(0)

    assert _exit_code(["train", "--config", name]) == 0
    (config,) = built
    expected = {"detr_r50": 300, "detr_r50_fast": 300, "detr_r50_mmdet3": 150, "small": 100, "demo": config.epochs}
    assert (config.epochs, config.optim.drop_epoch) == (expected[name], None)
    assert (config.model.backbone == "resnet50") == (name != "demo")
    assert config.mixed_precision == "auto"


def test_the_configuration_for_some_hundred_images_trains(shapes, run, tmp_path):
    output = tmp_path / "small"
    arguments = ["train", "--config", "small", *_data(shapes), *MODEL, "--model.weights", str(run / "model")]
    assert _exit_code([*arguments, "--epochs", "3", "--output", str(output), "--log_every", "1"]) == 0
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if record["kind"] == "train"]
    assert steps == [1, 2, 3]  # 6 images are a batch of 4 and one of 2, which are accumulated to a step
    evaluated = [record["epoch"] for record in records if "AP" in record]
    assert evaluated == [1, 2]  # counted from 0: after every second, and after the last


def test_a_later_configuration_overrides_an_earlier_one(monkeypatch, tmp_path):
    built = []
    monkeypatch.setattr(cli, "_run", lambda config, resume: built.append(config))
    (tmp_path / "mine.yaml").write_text("optim:\n  lr: 2.0e-4\n")
    _exit_code(["train", "--config", "small", "--config", str(tmp_path / "mine.yaml")])
    (config,) = built
    assert (config.optim.lr, config.optim.warmup_steps, config.patience) == (2e-4, 100, 10)


def test_the_fast_configuration_differs_in_speed_only(monkeypatch):
    built = []
    monkeypatch.setattr(cli, "_run", lambda config, resume: built.append(config))
    for name in ("detr_r50", "detr_r50_fast"):
        _exit_code(["train", f"--config={name}"])
    paper, fast = built
    assert fast.compile
    assert fast.allow_tf32
    assert len(fast.data.padded_sizes) == 8
    assert fast.data.batch_size * fast.optim.accumulate == 8 * paper.data.batch_size
    data = replace(fast.data, batch_size=paper.data.batch_size, padded_sizes=[])
    same = replace(fast, compile=False, allow_tf32=False, output=paper.output, data=data)
    assert replace(same, optim=replace(same.optim, accumulate=1)) == paper


def test_flags_go_over_the_file(monkeypatch):
    built = []
    monkeypatch.setattr(cli, "_run", lambda config, resume: built.append((config, resume)))
    _exit_code(["train", "--config=detr_r50", "--optim.lr", "3e-4", "--resume", "--data.batch_size=7"])
    ((config, resume),) = built
    assert (config.optim.lr, config.data.batch_size, config.epochs, resume) == (3e-4, 7, 300, True)


def test_the_configuration_of_mmdetection_3_is_the_preset(monkeypatch):
    from detr_fast import LossWeights, MatchWeights

    built = []
    monkeypatch.setattr(cli, "_run", lambda config, resume: built.append(config))
    _exit_code(["train", "--config", "detr_r50_mmdet3"])
    assert built[0].loss == LossWeights.mmdet3()
    assert built[0].match == MatchWeights.mmdet3() == MatchWeights(giou_eps=1e-6, box_scale=1333.0)
    assert MatchWeights.mmdet2().l1_format == "xyxy"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--data.batch_size", "0", "data.batch_size must be at least 1, got 0"),
        ("--data.num_workers", "-1", "data.num_workers must be at least 0, got -1"),
        ("--data.padded_sizes", "[[800,1333]]", "data.padded_sizes must consist of multiples of 32 pixels"),
        ("--optim.accumulate", "0", "optim.accumulate must be at least 1, got 0"),
        ("--optim.ema_decay", "1", "optim.ema_decay must be at least 0 and below 1, got 1"),
        ("--epochs", "0", "epochs must be at least 1, got 0"),
        ("--epoch", "3", "unrecognized arguments: --epoch 3"),
        ("--log_every", "0", "log_every must be at least 1, got 0"),
        ("--eval_every", "0", "eval_every must be at least 1, got 0"),
        ("--optim.lr", ".nan", "optim.lr must be at least 0, got nan"),
        ("--optim.lr", ".inf", "optim.lr must be at least 0, got inf"),
        ("--optim.lr", f"1{'0' * 400}", "int too large to convert to float"),
        ("--optim.lr", "-1", "optim.lr must be at least 0, got -1"),
        ("--optim.warmup_steps", "-5", "optim.warmup_steps must be at least 0, got -5"),
        ("--optim.ema_decay", "2", "optim.ema_decay must be at least 0 and below 1, got 2"),
        ("--seed", "-1", "seed must be at least 0, got -1"),
        ("--seed", str(2**64), "seed must be at most 4294967295"),
        ("--data.eval_size", "0", "data.eval_size must be from 1 to 16384 pixels, got 0"),
        ("--data.eval_max_size", "1000000000", "data.eval_max_size must be from 1 to 16384 pixels"),
        ("--match.cost_bbox", ".nan", "cost_bbox must be a finite number, got nan"),
        ("--loss.box_scale", "0", "box_scale must be above 0, got 0"),
        ("--model.num_heads", "3", "model: hidden_dim must be divisible by num_heads"),
        ("--model.num_queries", "0", "model: num_queries must be an integer of at least 1, got 0"),
        ("--model.num_decoder_layers", "0", "model: num_decoder_layers must be an integer of at least 1, got 0"),
        ("--model.num_ffn_layers", "1", "model: num_ffn_layers must be an integer of at least 2, got 1"),
        ("--model.position_eps", "-1", "model: position_eps must be at least 0, got -1"),
        ("--model.backbone", "vgg", "model: unknown backbone 'vgg'"),
    ],
)
def test_numbers_out_of_range_and_abbreviations_are_refused(shapes, tmp_path, option, value, message, capsys):
    output = tmp_path / "run"
    error = _error(["train", *_data(shapes), *MODEL, "--output", str(output), option, value], capsys)
    assert message in error
    assert error.count("\n") == (1 if error.endswith("\n") else 0)
    assert not output.exists()


def test_the_activations_of_convert_are_those_of_the_model(capsys):
    error = _error(["convert", "detr.pth", "other.pth", "--activation", "none"], capsys)
    assert all(name in error for name in ACTIVATIONS)


def test_the_version_is_printed(capsys):
    assert _exit_code(["--version"]) == 0
    assert capsys.readouterr().out == f"detr-fast {detr_fast.__version__}\n"


def test_the_directory_of_a_run_stands_for_its_model(run, shapes, tmp_path):
    for name, model in (("run", run), ("model", run / "model")):
        arguments = [str(shapes / "val"), "--model", str(model), "--threshold", "0", "--output", str(tmp_path / name)]
        assert _exit_code(["predict", *arguments]) == 0
    assert (tmp_path / "run/predictions.json").read_text() == (tmp_path / "model/predictions.json").read_text()


def test_directories_are_searched_for_images(run, shapes, tmp_path):
    """In subdirectories too, but without hidden files and without drawings of a prediction before."""
    images = tmp_path / "images"
    for name in ("a.png", "deep/er/b.PNG", ".hidden/c.png", "._d.png", "notes.txt"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shapes / "val/000000.png", images / name)
    with Image.open(images / "a.png") as image:
        image.save(images / "deep/e.avif")
    for _ in range(2):
        arguments = ["predict", str(images), "--model", str(run), "--output", str(images / "drawn")]
        assert _exit_code(arguments) == 0
        records = json.loads((images / "drawn/predictions.json").read_text())
        found = [str(Path(record["file"]).relative_to(images)) for record in records]
        assert found == ["a.png", "deep/e.avif", "deep/er/b.PNG"]


def test_the_output_directory_may_contain_the_images(run, shapes, tmp_path):
    shutil.copy(shapes / "val/000000.png", tmp_path / "a.png")
    assert _exit_code(["predict", str(tmp_path), "--model", str(run), "--output", str(tmp_path)]) == 0
    assert len(json.loads((tmp_path / "predictions.json").read_text())) == 1


def test_missing_model(tmp_path, capsys):
    message = _error(["predict", str(tmp_path), "--model", str(tmp_path / "nowhere")], capsys)
    assert "nowhere" in message


@pytest.mark.parametrize("key", ["config", "model", "data", "optim", "match", "loss", "data.augmentation"])
def test_a_configuration_does_not_print_another_file(tmp_path, key, capsys):
    (tmp_path / "secret").write_text("password: 123 : [\n")
    *groups, name = key.split(".")
    text = f"{name}: {tmp_path / 'secret'}\n"
    (tmp_path / "run.yaml").write_text("".join(f"{group}:\n  " for group in groups) + text)
    message = _error(["train", "--config", str(tmp_path / "run.yaml")], capsys)
    assert "123" not in message
    assert "cannot include another" in message or f"{key} must be a mapping of options" in message


def test_category_names_are_escaped_where_they_are_printed(shapes, tmp_path, capsys):
    content = json.loads((shapes / "annotations/instances_val.json").read_text())
    content["categories"][0]["name"] = "\x1b[2J\ud800ä"
    for part in ("train", "val"):
        own = json.loads((shapes / f"annotations/instances_{part}.json").read_text())
        (tmp_path / f"{part}.json").write_text(json.dumps(own | {"categories": content["categories"]}))
    annotations = [
        *("--data.train_annotations", str(tmp_path / "train.json")),
        *("--data.val_annotations", str(tmp_path / "val.json")),
    ]
    assert _exit_code(["train", *_data(shapes), *MODEL, *annotations, "--output", str(tmp_path / "run")]) == 0
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert "AP of \\x1b[2J\\ud800ä: " in output


def test_more_objects_than_queries_are_told_by_train_and_check_data(shapes, tmp_path, capsys):
    images, annotations = str(shapes / "train"), str(shapes / "annotations/instances_train.json")
    assert _exit_code(["check-data", "--images", images, "--annotations", annotations, "--num_queries", "1"]) == 1
    assert "objects, but 1 queries" in capsys.readouterr().out
    arguments = ["train", *_data(shapes), *MODEL, "--model.num_queries", "1", "--output", str(tmp_path / "run")]
    assert _exit_code(arguments) == 0
    assert "model.num_queries is too small: " in capsys.readouterr().out


def test_the_package_runs_as_the_command():
    output = subprocess.run(
        [sys.executable, "-m", "detr_fast", "--version"], capture_output=True, text=True, check=True
    )
    assert output.stdout == f"detr-fast {detr_fast.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "detr-fast: "),
        (["trian"], "detr-fast: "),
        (["train", "--optim.lr", "abc"], "detr-fast train: "),
        (["train", "--config", "nowhere.yaml"], "detr-fast train: "),
        (["predict", "a.png"], "detr-fast predict: "),
        (["eval", "--device", "tpu"], "detr-fast eval: "),
    ],
)
def test_an_error_is_one_line(arguments, message, capsys):
    assert _exit_code(arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith(message)
    assert output.err.endswith(" --help)\n")
    assert output.err.count("\n") == 1
    assert not output.out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_asked_for_is_required(run, shapes, tmp_path, capsys):
    data = ["--images", str(shapes / "val"), "--annotations", str(shapes / "annotations/instances_val.json")]
    train = ["train", *_data(shapes), *MODEL, "--output", str(tmp_path / "other")]
    predict = ["predict", str(shapes / "val"), "--model", str(run), "--output", str(tmp_path / "out")]
    for command in (train, ["eval", "--model", str(run), *data], predict):
        assert "device: there is no GPU" in _error([*command, "--device", "cuda"], capsys)
    assert not (tmp_path / "out").exists()
    assert _exit_code([*predict, "--device", "cpu"]) == 0


def test_the_demo_accepts_resume(monkeypatch, tmp_path):
    runs = []
    monkeypatch.setattr(cli, "_run", lambda config, resume: runs.append((config.output, resume)))
    monkeypatch.setattr(cli, "DEMO_IMAGES", {"num_train": 2, "num_val": 2})
    monkeypatch.chdir(tmp_path)
    for arguments in (["demo"], ["demo", "--resume"]):
        assert _exit_code(arguments) == 0
    assert runs == [("runs/demo", True)] * 2


def test_a_metric_without_ground_truth_is_a_dash(run, shapes, tmp_path, capsys):
    content = json.loads((shapes / "annotations/instances_val.json").read_text())
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 3]
    annotations = tmp_path / "val.json"
    annotations.write_text(json.dumps(content))
    arguments = ["--images", str(shapes / "val"), "--annotations", str(annotations), "--output", str(tmp_path / "m")]
    assert _exit_code(["eval", "--model", str(run), *arguments]) == 0
    output = capsys.readouterr().out
    assert "AP of triangle: –\n" in output
    assert "AP_large –\n" in output
    assert "-1" not in output
    assert json.loads((tmp_path / "m").read_text())["AP_large"] == -1


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_the_shell_completes_commands_and_options(tmp_path):
    pytest.importorskip("shtab")
    command = [sys.executable, "-m", "detr_fast", "--print_completion", "shtab-bash"]
    script = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for line, expected in (
        ("detr-fast pre", "predict"),
        ("detr-fast predict --thr", "--threshold"),
        ("detr-fast eval --device cu", "cuda"),
        ("detr-fast train --optim.back", "--optim.backbone_lr"),
    ):
        complete = f"COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _shtab_detr_fast"
        code = f'{script}\n{complete}; echo "${{COMPREPLY[@]}}"'
        answer = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=False)
        assert answer.stdout.split() == [expected], (line, answer.stderr)


def test_parts_are_frozen_by_an_option(monkeypatch, capsys):
    built = []
    monkeypatch.setattr(cli, "_run", lambda config, resume: built.append(config))
    assert _exit_code(["train", "--config", "detr_r50", "--model.freeze", "[backbone, encoder]"]) == 0
    assert built[0].model.freeze == ["backbone", "encoder"]
    assert "model.freeze" in _error(["train", "--config", "detr_r50", "--model.freeze", "[neck]"], capsys)

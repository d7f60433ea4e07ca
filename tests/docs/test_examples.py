"""The examples run, and what they print shows that they do what they say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: str | Path) -> str:
    """Run an example; what it prints."""
    return run_python(EXAMPLES / name, *arguments)


def run_python(*arguments: str | Path) -> str:
    done = start(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def start(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_every_example_is_tested():
    tested = set(re.findall(r'run\("(\w+\.py)"[,)]', Path(__file__).read_text()))
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested


def test_own_detector():
    totals = [float(total) for total in re.findall(r"total ([\d.]+)", run("own_detector.py"))]
    assert totals[-1] < 0.8 * totals[0]


def test_compare_backends():
    output = run("compare_backends.py")
    assert "cpp:\n  match_cost: largest difference" in output
    assert "DIFFER" not in output
    assert all(float(difference) < 1e-4 for difference in re.findall(r"float64 (\S+)", output))


def test_tracker():
    assert run("tracker.py").splitlines()[-1].endswith("3 tracks")


def test_transformers_detr():
    pytest.importorskip("transformers")
    output = run("transformers_detr.py")
    host, accelerated = (float(loss) for loss in re.findall(r"(?:transformers|accelerated) ([\d.]+)", output))
    assert accelerated == pytest.approx(host, rel=1e-5)
    losses = [float(loss) for loss in re.findall(r"step \d: loss ([\d.]+)", output)]
    assert len(losses) == 3
    assert losses[-1] < losses[0]


HELD_OUT = "2019_YELL_2_541000_4977000_image_crop"


def tiles_of(annotations: Path) -> dict[str, tuple[np.ndarray, list[list[float]]]]:
    """The pixels and the boxes of the tiles of a split, by the names of their files."""
    content = json.loads(annotations.read_text())
    tiles = {}
    for image in content["images"]:
        pixels = np.asarray(Image.open(annotations.with_suffix("") / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3) == (128, 128, 3)
        boxes = [entry["bbox"] for entry in content["annotations"] if entry["image_id"] == image["id"]]
        tiles[image["file_name"]] = pixels, boxes
    return tiles


@pytest.fixture(scope="module")
def crowns(crowns_wheel, tmp_path_factory):
    output = tmp_path_factory.mktemp("crowns") / "crowns"
    run("tree_crowns.py", crowns_wheel, "--output", output)
    return output


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_of_the_tiles_enclose_the_trees(crowns, split):
    for name, (pixels, boxes) in tiles_of(crowns / f"{split}.json").items():
        trees = pixels.any(-1)
        for x, y, width, height in np.array(boxes, int):
            assert trees[y : y + height, x : x + width].all(), name
            trees[y : y + height, x : x + width] = False
        # What is left has no box, since less than half of the tree is in the tile; none has more than 40 × 70 pixels.
        assert trees.sum() < 40 * 70 / 2, name


def test_splits_share_no_photograph_and_validation_tiles_do_not_overlap(crowns):
    train, val = tiles_of(crowns / "train.json"), tiles_of(crowns / "val.json")
    assert set(val) == {f"{HELD_OUT}_{left}_{top}.png" for left in (0, 128) for top in (0, 128)}
    assert not any(name.startswith(HELD_OUT) for name in train)
    assert [boxes for _, boxes in val.values()].count([]) == 1
    assert all(boxes for _, boxes in train.values())
    assert sum(len(boxes) for _, boxes in val.values()) == 3  # each tree once, also the one across two tiles


def test_a_photograph_to_hold_out_can_be_named(crowns_wheel, tmp_path):
    other = "2019_YELL_2_528000_4978000_image_crop2"
    run("tree_crowns.py", crowns_wheel, "--output", tmp_path / "crowns", "--held-out", other)
    assert all(name.startswith(other) for name in tiles_of(tmp_path / "crowns" / "val.json"))


def test_errors_of_tree_crowns_name_the_remedy(crowns, crowns_wheel, tmp_path):
    damaged = tmp_path / "damaged.whl"
    damaged.write_bytes(crowns_wheel.read_bytes()[:1000])
    for arguments, remedy in [
        ((crowns_wheel, "--output", crowns), "remove it"),
        ((crowns_wheel, "--output", tmp_path / "a", "--held-out", "OSBS_029"), "--held-out"),
        ((crowns_wheel, "--output", tmp_path / "a", "--tile", "257"), "smaller --tile"),
        ((crowns_wheel, "--output", tmp_path / "a", "--tile", "0"), "at least 32"),
        ((damaged, "--output", tmp_path / "a"), "download it again"),
        ((tmp_path / "missing.whl", "--output", tmp_path / "a"), "download it again"),
    ]:
        done = start(EXAMPLES / "tree_crowns.py", *arguments)
        assert done.returncode != 0
        assert remedy in done.stderr.splitlines()[-1]
    assert not (tmp_path / "a").exists()


def test_the_recipe_trains(crowns, tmp_path):
    configs = ["--config", "small", "--config", EXAMPLES / "tree_crowns.yaml"]
    data = [
        *("--data.train_images", crowns / "train", "--data.train_annotations", crowns / "train.json"),
        *("--data.val_images", crowns / "val", "--data.val_annotations", crowns / "val.json"),
    ]
    model = ["--model.hidden_dim", "16", "--data.batch_size", "2", "--device", "cpu", "--epochs", "1"]
    output = tmp_path / "run"
    run_python("-m", "detr_fast.cli", "train", *configs, *data, *model, "--output", output, "--log_every", "1")
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert sum(record["kind"] == "train" for record in records) >= 2
    assert (output / "model" / "model.safetensors").exists()


@pytest.mark.skipif(not (WHEELS := sorted(EXAMPLES.parent.glob("deepforest-2.1.0-*.whl"))), reason="not downloaded")
def test_the_data_of_the_recipe(tmp_path):
    printed = run("tree_crowns.py", WHEELS[-1], "--output", tmp_path / "crowns")
    assert "train: 835 tiles, 2251 boxes" in printed
    assert "val: 72 tiles, 247 boxes" in printed

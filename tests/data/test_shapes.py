from __future__ import annotations

import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detr_fast.data import Augmentation, CocoDetection, DataError, check_dataset, make_shapes
from detr_fast.data import shapes as shapes_module


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", num_train=200, num_val=20, seed=4)


def _annotations(root: Path, split: str) -> dict[str, Any]:
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


def _files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("split", "count"), [("train", 200), ("val", 20)])
def test_the_data_set_has_no_fault(root: Path, split: str, count: int) -> None:
    file = root / "annotations" / f"instances_{split}.json"
    assert check_dataset(root / split, file) == []
    dataset = CocoDetection(root / split, file, Augmentation(scales=(64,), crop=0.0))
    assert len(dataset) == count
    assert [category.name for category in dataset.categories] == ["triangle", "circle", "rectangle"]


def test_counts_and_classes(root: Path) -> None:
    content = _annotations(root, "train")
    per_image = Counter(annotation["image_id"] for annotation in content["annotations"])
    assert len(per_image) == 200
    assert set(per_image.values()) == {1, 2, 3, 4, 5}
    classes = Counter(annotation["category_id"] for annotation in content["annotations"])
    assert sorted(classes) == [3, 7, 12]
    assert min(classes.values()) > 0.2 * classes.total()


def test_boxes_fit_the_pixels(root: Path) -> None:
    """On a plain background every shape is the only thing of its colour."""
    content = _annotations(root, "train")
    checked = 0
    for image in content["images"]:
        pixels = np.asarray(Image.open(root / "train" / image["file_name"]))
        colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
        if len(colours) > 6:
            continue
        measured = []
        for colour in np.delete(colours, counts.argmax(), axis=0):
            rows, columns = np.nonzero((pixels == colour).all(-1))
            left, top = columns.min(), rows.min()
            measured.append(([left, top, columns.max() + 1 - left, rows.max() + 1 - top], len(rows)))
        stated = [(a["bbox"], a["area"]) for a in content["annotations"] if a["image_id"] == image["id"]]
        assert sorted(measured) == sorted(stated)
        checked += len(stated)
    assert checked > 100


def test_enough_of_every_shape_is_visible_and_its_kind_is_what_is_drawn() -> None:
    for seed in range(60):
        _, shapes = shapes_module._draw_image(96, 5, random.Random(seed))
        assert 1 <= len(shapes) <= 5
        for shape in shapes:
            assert shape.visible.sum() >= 0.6 * shape.num_pixels
        last = shapes[-1].visible  # nothing covers it
        rows, columns = np.nonzero(last)
        fill = last.sum() / ((np.ptp(rows) + 1) * (np.ptp(columns) + 1))
        expected = {"rectangle": 1.0, "circle": np.pi / 4, "triangle": 0.5}[shapes[-1].category.name]
        assert fill == pytest.approx(expected, abs=0.08)


def test_the_seed_decides(root: Path, tmp_path: Path) -> None:
    again = make_shapes(tmp_path / "again", num_train=200, num_val=20, seed=4)
    assert _files(again) == _files(root)
    other = make_shapes(tmp_path / "other", num_train=2, num_val=1, seed=5)
    assert (other / "train/000000.png").read_bytes() != (root / "train/000000.png").read_bytes()
    assert (root / "val/000000.png").read_bytes() != (root / "train/000000.png").read_bytes()


def test_what_is_there_is_taken(tmp_path: Path) -> None:
    root = make_shapes(tmp_path / "shapes", 3, 2)
    (root / "train/000000.png").write_bytes(b"marked")
    assert make_shapes(tmp_path / "shapes", 3, 2) == root
    assert (root / "train/000000.png").read_bytes() == b"marked"
    with pytest.raises(DataError, match="delete it or choose another directory"):
        make_shapes(tmp_path / "shapes", 4, 2)


def test_other_directories_are_not_changed(tmp_path: Path) -> None:
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes/thesis.tex").touch()
    with pytest.raises(DataError, match="is not empty and contains no generated shapes"):
        make_shapes(tmp_path / "shapes", 3, 2)
    assert [path.name for path in (tmp_path / "shapes").iterdir()] == ["thesis.tex"]


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "shapes").mkdir()
    assert (make_shapes(tmp_path / "shapes", 3, 2) / "val/000001.png").is_file()


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Image.Image.save

    def interrupted(image: Image.Image, path: Path, **options: Any) -> None:
        if path.name == "000002.png":
            raise KeyboardInterrupt
        save(image, path, **options)

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path / "shapes", 5, 2)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    assert len(list((make_shapes(tmp_path / "shapes", 5, 2) / "train").iterdir())) == 5


def test_two_processes_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: make_shapes(tmp_path / "shapes", 30, 5), range(3)))
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]
    assert check_dataset(tmp_path / "shapes/train", tmp_path / "shapes/annotations/instances_train.json") == []


@pytest.mark.parametrize("arguments", [(0, 1), (1, 0), (1, 1, 16), (1, 1, 64, 0)])
def test_bad_arguments(tmp_path: Path, arguments: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        make_shapes(tmp_path / "shapes", *arguments)

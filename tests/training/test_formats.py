from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detr_fast.data import CocoDetection, Resize
from detr_fast.training import Trainer
from detr_fast.training.coco import CocoEvaluation


def _write_yolo(content: dict[str, Any], root: Path) -> Path:
    numbers = {category["id"]: k for k, category in enumerate(content["categories"])}
    file = root / "data.yaml"
    file.write_text(json.dumps({"names": [category["name"] for category in content["categories"]]}))
    (root / "labels").mkdir()
    for image in content["images"]:
        lines = []
        for entry in content["annotations"]:
            if entry["image_id"] == image["id"]:
                x, y, width, height = np.array(entry["bbox"]) / image["width"]  # the images are square
                lines.append(f"{numbers[entry['category_id']]} {x + width / 2} {y + height / 2} {width} {height}\n")
        (root / "labels" / image["file_name"]).with_suffix(".txt").write_text("".join(lines))
    return file


def _write_voc(content: dict[str, Any], root: Path) -> Path:
    names = {category["id"]: category["name"] for category in content["categories"]}
    annotations = root / "Annotations"
    annotations.mkdir()
    for image in content["images"]:
        xml = f"<size><width>{image['width']}</width><height>{image['height']}</height></size>\n"
        for entry in content["annotations"]:
            if entry["image_id"] == image["id"]:
                x, y, width, height = entry["bbox"]
                corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
                box = "".join(f"<{key}>{value}</{key}>" for key, value in corners.items())
                xml += f"<object><name>{names[entry['category_id']]}</name><bndbox>{box}</bndbox></object>\n"
        (annotations / image["file_name"]).with_suffix(".xml").write_text(f"<annotation>{xml}</annotation>")
    return annotations


FORMATS = {"yolo": _write_yolo, "voc": _write_voc}


def _copy(shapes: Path, split: str, layout: str, root: Path) -> dict[str, str]:
    """Write the shapes of a split in another format, and return the arguments of the data set."""
    shutil.copytree(shapes / split, root / "images")
    content = json.loads((shapes / f"annotations/instances_{split}.json").read_text())
    return {"image_dir": str(root / "images"), "annotation_file": str(FORMATS[layout](content, root))}


@pytest.mark.parametrize("layout", FORMATS)
def test_metrics_do_not_depend_on_the_format(shapes, tmp_path, layout):
    coco = CocoDetection(shapes / "val", shapes / "annotations/instances_val.json", Resize(32))
    other = CocoDetection(**_copy(shapes, "val", layout, tmp_path), transform=Resize(32))
    numbers = {category.name: k for k, category in enumerate(other.categories)}
    relabeled = np.array([numbers[category.name] for category in coco.categories])
    rng = np.random.default_rng(5)
    rows = []
    for index in range(len(coco)):
        loaded = coco.load_image(index)
        boxes = loaded.boxes.numpy() + rng.normal(0, 1.5, loaded.boxes.shape)
        sizes = boxes[:, 2:] - boxes[:, :2]
        rows.append(
            np.column_stack([np.full(len(boxes), index), boxes[:, :2], sizes, rng.random(len(boxes)), loaded.labels])
        )
    detections = np.concatenate(rows)
    expected = CocoEvaluation.of_dataset(coco, detections).metrics
    detections[:, 6] = relabeled[detections[:, 6].astype(int)]
    actual = CocoEvaluation.of_dataset(other, detections).metrics
    assert 0.1 < expected["AP"] < 0.95
    assert actual.pop("classes") == pytest.approx(expected.pop("classes"))
    # COCO's areas, which are smaller than those of the boxes, decide about the sizes of objects.
    for name in ("AP", "AP50", "AP75", "AR1", "AR10", "AR100"):
        assert actual[name] == pytest.approx(expected[name]), name


@pytest.mark.parametrize("layout", FORMATS)
def test_a_run_on_each_format(config, shapes, tmp_path, layout):
    paths = {}
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        arguments = _copy(shapes, split, layout, tmp_path / split)
        paths[f"{split}_images"], paths[f"{split}_annotations"] = arguments.values()
    trainer = Trainer(config(**paths, epochs=1))
    metrics = trainer.run()
    assert set(metrics["classes"]) == {"circle", "rectangle", "triangle"}
    assert np.isfinite(metrics["loss"])

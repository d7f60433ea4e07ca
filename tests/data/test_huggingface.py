from __future__ import annotations

import io
import json
import random
from typing import Any

import pytest
import torch
from PIL import Image

from detr_fast.data import DataError, FaultKind, check_dataset, save_huggingface_dataset
from detr_fast.data.annotations import read_annotations

datasets = pytest.importorskip("datasets")

NAMES = ["coverall", "mask"]
XYWH = [[4.0, 6, 10, 12], [0, 0, 40, 30]]
XYXY = [[4.0, 6, 14, 18], [0, 0, 40, 30]]


def encoded(kind: str = "JPEG") -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (90, 20, 60)).save(buffer, kind)
    return {"bytes": buffer.getvalue(), "path": None}


def make(boxes: Any, categories: Any, layout: str = "lists", category: Any = None, image: Any = None) -> Any:
    """A split with a row of objects, and one without."""
    kind = datasets.ClassLabel(names=NAMES) if category is None else category
    fields = {"bbox": datasets.List(datasets.Value("float64")), "category": kind}
    if layout == "lists":  # a struct of lists, as most data sets on the Hub
        objects = {name: datasets.List(field) for name, field in fields.items()}
        rows = [{"bbox": boxes, "category": categories}, {"bbox": [], "category": []}]
    else:
        objects = datasets.List(fields)
        rows = [[{"bbox": b, "category": c} for b, c in zip(boxes, categories, strict=True)], []]
    features = datasets.Features({"image": datasets.Image(), "objects": objects})
    images = [image or encoded(), encoded("PNG")]
    return datasets.Dataset.from_dict({"image": images, "objects": rows}, features=features)


@pytest.mark.parametrize("layout", ["lists", "structs"])
@pytest.mark.parametrize(("box_format", "boxes"), [("xywh", XYWH), ("xyxy", XYXY)])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_split_is_written_as_coco(tmp_path, layout, box_format, boxes, streamed):
    split = make(boxes, [1, 0], layout)
    split = split.to_iterable_dataset() if streamed else split
    file = save_huggingface_dataset(split, tmp_path / "new", box_format=box_format)
    assert check_dataset(tmp_path / "new/images", file) == []
    found = read_annotations(file, tmp_path / "new/images")
    assert [category.name for category in found.categories] == NAMES
    assert (found.labels.tolist(), found.boxes.tolist(), found.offsets) == ([1, 0], XYXY, [0, 2, 2])
    assert (tmp_path / "new/images/00000000.jpg").read_bytes() == encoded()["bytes"]
    assert (tmp_path / "new/images/00000001.png").read_bytes() == encoded("PNG")["bytes"]


def test_transformers_reads_the_same_boxes(tmp_path):
    transformers = pytest.importorskip("transformers")
    rng = random.Random(0)
    corners = [sorted(rng.sample(range(41), 2)) + sorted(rng.sample(range(31), 2)) for _ in range(9)]
    boxes = [[left, top, right - left, bottom - top] for left, right, top, bottom in corners]
    split = make(boxes, [k % 2 for k in range(9)])
    file = save_huggingface_dataset(split, tmp_path / "new", box_format="xywh")
    entries = [entry for entry in json.loads(file.read_text())["annotations"] if entry["image_id"] == 0]
    for entry in entries:
        entry["area"] = entry["bbox"][2] * entry["bbox"][3]
    processor = transformers.DetrImageProcessor(do_resize=False)
    annotations = {"image_id": 0, "annotations": entries}
    target = processor(split[0]["image"], annotations=annotations, return_tensors="pt")["labels"][0]
    found = read_annotations(file, tmp_path / "new/images")
    assert found.labels.tolist() == target["class_labels"].tolist()
    low, high = found.boxes[:, :2], found.boxes[:, 2:]
    fractions = torch.cat(((low + high) / 2, high - low), 1) / torch.tensor([40, 30, 40, 30])
    torch.testing.assert_close(fractions, target["boxes"])


def test_names_are_stated_where_the_data_set_has_none(tmp_path):
    split = make(XYWH, ["mask", "hat"], category=datasets.Value("string"))
    with pytest.raises(DataError, match="state the names of the categories"):
        save_huggingface_dataset(split, tmp_path / "none", box_format="xywh")
    file = save_huggingface_dataset(split, tmp_path / "new", box_format="xywh", names=NAMES)
    found = read_annotations(file, tmp_path / "new/images")
    assert found.labels.tolist() == [1]
    assert [(fault.kind, fault.image_id, fault.annotation_id) for fault in found.faults] == [
        (FaultKind.UNKNOWN_CATEGORY, 0, 2)
    ]


def test_faults_are_kept_for_the_check(tmp_path):
    boxes = [[4.0, 6, 10], [float("nan"), 1, 5, 5], [30, 20, 4, 5], [4, 6, 10, 12]]
    split = make(boxes, [0, 0, 0, 0], image={"bytes": b"no image", "path": None})
    file = save_huggingface_dataset(split, tmp_path / "new", box_format="xyxy")
    assert [fault.kind for fault in check_dataset(tmp_path / "new/images", file)] == [
        FaultKind.WRONG_IMAGE_SIZE,
        FaultKind.MALFORMED_BOX,
        FaultKind.NON_FINITE_BOX,
        FaultKind.BOX_WITHOUT_AREA,
        FaultKind.UNREADABLE_IMAGE,
    ]


def test_images_in_files_are_copied(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded()["bytes"])
    split = make(XYWH, [1, 0], image={"bytes": None, "path": str(tmp_path / "a.jpg")})
    file = save_huggingface_dataset(split, tmp_path / "new", box_format="xywh")
    assert check_dataset(tmp_path / "new/images", file) == []


def test_what_cannot_be_written_is_an_error(tmp_path):
    split = make(XYWH, [1, 0])
    with pytest.raises(ValueError, match="box_format must be"):
        save_huggingface_dataset(split, tmp_path / "new", box_format="coco")
    with pytest.raises(DataError, match="no column objects; its columns are image"):
        save_huggingface_dataset(split.remove_columns("objects"), tmp_path / "new", box_format="xywh")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is not empty"):
        save_huggingface_dataset(split, tmp_path, box_format="xywh")

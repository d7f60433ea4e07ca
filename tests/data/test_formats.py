from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from detr_fast.data import Category, CocoDetection, DataError, FaultKind, Resize, check_dataset
from detr_fast.data.annotations import read_annotations, read_ground_truth

NAMES = ["person", "bicycle", "car"]


def save_image(path: Path, size: tuple[int, int] = (40, 30), orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (90, 120, 60))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


class YoloFolder:
    """Images of 40 x 30 in images/train and their label files in labels/train."""

    def __init__(self, root: Path) -> None:
        self.root, self.images, self.labels = root, root / "images/train", root / "labels/train"
        self.file = write(root / "data.yaml", f"path: .\ntrain: images/train\nval: images/val\nnc: 3\nnames: {NAMES}\n")

    def add(self, stem: str, labels: str | None, **image: Any) -> None:
        save_image(self.images / f"{stem}.png", **image)
        if labels is not None:
            write(self.labels / f"{stem}.txt", labels)

    def read(self, *arguments: Any) -> Any:
        return read_annotations(self.file, self.images, *arguments)


@pytest.fixture
def yolo(tmp_path: Path) -> YoloFolder:
    return YoloFolder(tmp_path)


class VocFolder:
    """The layout of VOC2012: Annotations, JPEGImages and ImageSets/Main."""

    def __init__(self, root: Path) -> None:
        self.root, self.images, self.annotations = root, root / "JPEGImages", root / "Annotations"
        self.annotations.mkdir()

    def add(self, stem: str, *objects: str, size: tuple[int, int] = (40, 30), head: str = "") -> Path:
        save_image(self.images / f"{stem}.jpg", size=size)
        lines = [
            f"{head}<annotation>",
            f"<filename>{stem}.jpg</filename>",
            f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>",
            *objects,
            "</annotation>",
        ]
        return write(self.annotations / f"{stem}.xml", "\n".join(lines))

    def split(self, name: str, *lines: str) -> Path:
        return write(self.root / "ImageSets/Main" / f"{name}.txt", "\n".join(lines) + "\n")


@pytest.fixture
def voc(tmp_path: Path) -> VocFolder:
    return VocFolder(tmp_path)


def voc_object(name: str, *corners: Any, difficult: int = 0, inner: str = "") -> str:
    box = "".join(
        f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    )
    return f"<object><name>{name}</name><difficult>{difficult}</difficult>{inner}<bndbox>{box}</bndbox></object>"


def located(faults: list[Any]) -> list[tuple[Any, str, int | None]]:
    return [(fault.kind, os.path.basename(fault.file), fault.line) for fault in faults]


def test_a_yolo_data_set(yolo):
    yolo.add("b", "2 0.5 0.5 0.5 1\n\n0 0.25 0.5 0.1 0.2\n")
    yolo.add("a", None)
    found = yolo.read()
    assert found.categories == ((0, "person"), (1, "bicycle"), (2, "car"))
    assert [Path(image.path).name for image in found.images] == ["a.png", "b.png"]
    assert found.offsets == [0, 0, 2]
    assert found.labels.tolist() == [2, 0]
    torch.testing.assert_close(found.boxes, torch.tensor([[10.0, 0, 30, 30], [8, 12, 12, 18]]))
    assert found.faults == []


def test_every_fault_of_a_label_file_has_its_line(yolo):
    lines = [
        "0 0.5 0.5 0.2 0.2",
        "0 0.5 0.5 0.2",  # line 2
        "car 0.5 0.5 0.2 0.2",
        "0.5 0.5 0.5 0.2 0.2",
        "7 0.5 0.5 0.2 0.2",
        "0 0.5 0.5 0 0.2",
        "0 nan 0.5 0.2 0.2",
        "0 1.5 0.5 0.2 0.2",
        "0 0.9 0.5 0.4 0.2",
        "0 0.5 0.5 0.2 0.2 0.9",  # line 10, of a prediction with its score
        "0 0.1 0.1 inf 0.1 0.3 0.4",
    ]
    yolo.add("a", "\n".join(lines))
    yolo.add("b", "")
    (yolo.labels / "b.txt").write_bytes(b"\xff\xfe\xff")
    write(yolo.labels / "c.txt", "0 0.5 0.5 0.2 0.2")
    write(yolo.images / "d.png", "no image")
    found = yolo.read()
    assert located(found.faults) == [
        *((FaultKind.MALFORMED_ANNOTATION, "a.txt", line) for line in (2, 3, 4)),
        (FaultKind.UNKNOWN_CATEGORY, "a.txt", 5),
        (FaultKind.MALFORMED_ANNOTATION, "a.txt", 10),
        (FaultKind.MALFORMED_FILE, "b.txt", None),
        (FaultKind.UNREADABLE_IMAGE, "d.png", None),
        (FaultKind.MISSING_IMAGE, "c.txt", None),
        (FaultKind.BOX_WITHOUT_AREA, "a.txt", 6),
        (FaultKind.NON_FINITE_BOX, "a.txt", 7),
        (FaultKind.BOX_OUTSIDE_IMAGE, "a.txt", 8),
        (FaultKind.BOX_BEYOND_IMAGE, "a.txt", 9),
        (FaultKind.NON_FINITE_BOX, "a.txt", 11),
    ]
    assert found.faults[11].box == pytest.approx((28, 12, 44, 18))
    assert str(found.faults[0]).startswith(f"{yolo.labels}/a.txt, line 2: malformed annotation: expected 5 numbers")
    assert found.offsets == [0, 2, 2]
    assert check_dataset(yolo.images, yolo.file) == found.faults


def test_a_polygon_is_its_bounding_box(yolo):
    yolo.add("a", "1 0.1 0.2 0.5 0.3 0.3 0.9 0.2 0.4")
    assert yolo.read().boxes.tolist() == [pytest.approx([4, 6, 20, 27])]


def test_key_points_are_left_out(yolo):
    yolo.file.write_text("kpt_shape: [2, 3]\nnames: {0: person}\n")
    yolo.add("a", "0 0.5 0.5 0.5 1 0.1 0.1 2 0.9 0.9 2\n0 0.5 0.5 0.5 1\n")
    found = yolo.read()
    assert found.boxes.tolist() == [[10, 0, 30, 30]]
    assert located(found.faults) == [(FaultKind.MALFORMED_ANNOTATION, "a.txt", 2)]


def test_fractions_refer_to_the_upright_image(yolo):
    yolo.add("a", "0 0.5 0.5 1 0.5", orientation=6)
    dataset = CocoDetection(yolo.images, yolo.file, Resize(40))
    assert dataset.load_image(0).image.shape == (40, 30, 3)
    assert dataset.load_image(0).boxes.tolist() == [[0, 10, 30, 30]]


def test_label_files_are_found_as_ultralytics_finds_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = write(tmp_path / "data.yaml", "names: [a]")
    label = "0 0.5 0.5 0.5 0.5"
    for image, labels, folder in [
        ("one/images/x/y.png", "one/labels/x/y.txt", "one/images"),
        ("images/two/images/y.png", "images/two/labels/y.txt", "images/two"),
        ("three/train/images/y.png", "three/train/labels/y.txt", "three"),
        ("four/y.png", "four/y.txt", "four"),
        ("five/images/y.png", "five/labels/y.txt", "five/../five/images/"),
    ]:
        save_image(Path(image))
        write(Path(labels), label)
        assert read_annotations(names, folder).offsets == [0, 1]
    monkeypatch.chdir(tmp_path / "one/images")
    assert read_annotations(names, ".").offsets == [0, 1]


def test_label_files_beside_their_names(yolo):
    yolo.add("a", "1 0.5 0.5 0.5 1")
    write(yolo.labels / "classes.txt", "dog\ncat\n")
    found = read_annotations(yolo.labels, yolo.images)
    assert found.categories == ((0, "dog"), (1, "cat"))
    assert (found.boxes.tolist(), found.faults) == ([[10, 0, 30, 30]], [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("names: [a, b]\nnc: 3", "nc is 3, but there are 2 names"),
        ("train: images", "has no names"),
        ("names: {x: a}", "the keys of names must be integers"),
        ("- a", "contains a list instead of a mapping"),
        ("names: [", "the YAML file of a YOLO data set has names"),
        ("names: [a]\nkpt_shape: 3", "kpt_shape must be"),
        ("names: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_an_unusable_yaml_file_is_an_error(yolo, content, message):
    yolo.add("a", "0 0.5 0.5 1 0.5")
    yolo.file.write_text(content)
    with pytest.raises(DataError, match=message):
        yolo.read()


def test_images_without_any_label_file_are_an_error(yolo):
    yolo.add("a", None)
    with pytest.raises(DataError, match=f"that of a.png should be {yolo.labels}/a.txt"):
        yolo.read()
    (yolo.images / "a.png").unlink()
    with pytest.raises(DataError, match="contains no image"):
        yolo.read()


def test_a_large_label_file_is_not_read(yolo):
    yolo.add("a", "0 0.5 0.5 1 0.5")
    yolo.add("b", "")
    with (yolo.labels / "b.txt").open("r+b") as file:
        file.truncate(2**40)  # without any block on the disk
    found = yolo.read()
    assert located(found.faults) == [(FaultKind.MALFORMED_FILE, "b.txt", None)]


def test_names_that_yaml_takes_for_numbers(yolo):
    yolo.file.write_text("names: [0, 1, yes]")
    yolo.add("a", "1 0.5 0.5 1 0.5")
    found = yolo.read()
    assert found.categories == ((0, "0"), (1, "1"))
    assert [fault.kind for fault in found.faults] == [FaultKind.MALFORMED_CATEGORY]


def test_a_voc_data_set(voc):
    part = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>"
    voc.add("2008_2", voc_object("person", 1, 1, 40, 30, inner=part), voc_object("car", 11, 6, 20, 15))
    voc.add("2008_1", voc_object("car", 5.5, 6, 20, 15, difficult=1))
    found = read_annotations(voc.annotations, voc.images)
    assert found.categories == ((1, "car"), (2, "person"))
    assert [(image.id, Path(image.path).name, image.size) for image in found.images] == [
        (1, "2008_1.jpg", (40, 30)),
        (2, "2008_2.jpg", (40, 30)),
    ]
    assert found.offsets == [0, 0, 2]
    assert found.labels.tolist() == [1, 0]
    assert found.boxes.tolist() == [[0, 0, 40, 30], [10, 5, 20, 15]]
    assert found.faults == []
    truth = read_ground_truth(voc.annotations, voc.images)
    assert [(entry["iscrowd"], entry["bbox"], entry["category_id"]) for entry in truth["annotations"]] == [
        (1, [4.5, 5.0, 15.5, 10.0], 1),
        (0, [0.0, 0.0, 40.0, 30.0], 2),
        (0, [10.0, 5.0, 10.0, 10.0], 1),
    ]


def test_a_split_of_voc(voc):
    for stem in ("1", "2", "3"):
        voc.add(stem, voc_object("car", 5, 6, 20, 15))
    split = voc.split("train", "3  1", "", "1 -1", "4", "../x", "3")
    found = read_annotations(split, voc.images)
    assert [Path(image.path).stem for image in found.images] == ["3", "1"]
    assert located(found.faults) == [
        (FaultKind.MALFORMED_FILE, "train.txt", 4),
        (FaultKind.UNSAFE_FILE_NAME, "train.txt", 5),
        (FaultKind.DUPLICATE_IMAGE, "train.txt", 6),
    ]
    with pytest.raises(DataError, match="lists none of the XML files"):
        read_annotations(voc.split("empty", "9"), voc.images)


def test_every_fault_of_an_xml_file_has_its_line(voc):
    bad_box = "<object><name>car</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax></bndbox></object>"
    voc.add(
        "1",
        voc_object("car", 5, 6, 20, 15),  # line 4
        voc_object("", 5, 6, 20, 15),
        voc_object("car", 5, 6, 20, 15, difficult=3),
        bad_box,
        voc_object("car", 5, "six", 20, 15),
        voc_object("car", 5, 6, 4, 15),  # line 9
        voc_object("car", 5, 6, 50, 15),
        voc_object("car", 5, 6, "inf", 15),
    )
    (voc.add("2").parent / "2.xml").write_text("<annotation>")
    (voc.images / "3.jpg").unlink(missing_ok=True)
    write(voc.annotations / "3.xml", "<annotation></annotation>")
    faults = read_annotations(voc.annotations, voc.images).faults
    assert located(faults) == [
        (FaultKind.MALFORMED_ANNOTATION, "1.xml", 5),
        (FaultKind.MALFORMED_ANNOTATION, "1.xml", 6),
        (FaultKind.MALFORMED_BOX, "1.xml", 7),
        (FaultKind.MALFORMED_BOX, "1.xml", 8),
        (FaultKind.MALFORMED_FILE, "2.xml", None),
        (FaultKind.MISSING_IMAGE, "3.xml", None),
        (FaultKind.WRONG_IMAGE_SIZE, "3.xml", None),
        (FaultKind.BOX_WITHOUT_AREA, "1.xml", 9),
        (FaultKind.BOX_BEYOND_IMAGE, "1.xml", 10),
        (FaultKind.NON_FINITE_BOX, "1.xml", 11),
    ]


@pytest.mark.parametrize("kind", ["internal", "external"])
def test_a_document_type_is_refused(voc, kind, tmp_path):
    secret = write(tmp_path / "secret", "a secret")
    entities = {
        "internal": '<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;">',
        "external": f'<!ENTITY c SYSTEM "{secret.as_uri()}">',
    }[kind]
    voc.add("1", voc_object("&c;", 5, 6, 20, 15), head=f"<!DOCTYPE annotation [{entities}]>")
    voc.add("2", voc_object("car", 5, 6, 20, 15))
    found = read_annotations(voc.annotations, voc.images)
    assert located(found.faults) == [(FaultKind.MALFORMED_FILE, "1.xml", None)]
    assert "declares a document type" in found.faults[0].message
    assert found.categories == ((1, "car"),)


def test_the_file_name_tells_images_of_the_same_stem_apart(voc):
    voc.add("1", voc_object("car", 5, 6, 20, 15))
    save_image(voc.images / "1.bmp")
    (image,) = read_annotations(voc.annotations, voc.images).images
    assert Path(image.path).name == "1.jpg"
    (voc.images / "1.jpg").rename(voc.images / "1.png")  # as after a conversion of all images
    (voc.images / "1.bmp").unlink()
    (image,) = read_annotations(voc.annotations, voc.images).images
    assert Path(image.path).name == "1.png"


def test_ids_follow_the_names_of_the_model(voc, yolo):
    voc.add("1", voc_object("dog", 5, 6, 20, 15), voc_object("car", 5, 6, 20, 15), voc_object("owl", 1, 1, 5, 5))
    model = [Category(4, "car"), Category(2, "cat"), Category(9, "dog")]
    found = read_annotations(voc.annotations, voc.images, model)
    assert found.labels.tolist() == [2, 0]
    assert located(found.faults) == [(FaultKind.UNKNOWN_CATEGORY, "1.xml", 6)]
    truth = CocoDetection(voc.images, voc.annotations, Resize(30), categories=model).ground_truth()
    assert truth["categories"] == [{"id": 4, "name": "car"}, {"id": 9, "name": "dog"}, {"id": 10, "name": "owl"}]
    yolo.add("a", "2 0.5 0.5 0.5 1\n1 0.5 0.5 0.5 1")
    assert yolo.read(model).labels.tolist() == [0]
    twice = [Category(0, "a"), Category(1, "a")]
    yolo.file.write_text("names: [a, a]")
    yolo.add("a", "1 0.5 0.5 0.5 1\n0 0.5 0.5 0.5 1")
    assert yolo.read(twice).labels.tolist() == yolo.read().labels.tolist() == [1, 0]


def roboflow(root: Path, annotations: list[dict[str, Any]]) -> Path:
    folder = root / "train"
    save_image(folder / "a_jpg.rf.0123.jpg")
    content = {
        "info": {"description": "Exported from roboflow.com"},
        "categories": [
            {"id": 0, "name": "animals", "supercategory": "none"},
            {"id": 1, "name": "cat", "supercategory": "animals"},
            {"id": 2, "name": "dog", "supercategory": "animals"},
        ],
        "images": [{"id": 0, "license": 1, "file_name": "a_jpg.rf.0123.jpg", "height": 30, "width": 40}],
        "annotations": annotations,
    }
    write(folder / "_annotations.coco.json", json.dumps(content))
    return folder


def test_an_export_of_roboflow(tmp_path):
    entry = {"image_id": 0, "bbox": [1, 2, 30, 20], "area": 600, "segmentation": [], "iscrowd": 0}
    folder = roboflow(tmp_path, [{"id": 5, "category_id": 2, **entry}])
    found = read_annotations(folder, folder)
    assert found.categories == ((1, "cat"), (2, "dog"))
    assert (found.labels.tolist(), found.boxes.tolist()) == ([1], [[1, 2, 31, 22]])
    assert found.faults == []
    folder = roboflow(tmp_path, [{"id": 5, "category_id": 0, **entry}])  # the group labels an object
    assert read_annotations(folder, folder).categories == ((0, "animals"), (1, "cat"), (2, "dog"))


def test_what_is_no_known_format_is_an_error(tmp_path, voc):
    save_image(tmp_path / "JPEGImages/1.jpg")
    (tmp_path / "empty").mkdir()
    both = tmp_path / "both"
    write(both / "classes.txt", "car")
    write(both / "1.xml", "<annotation/>")
    for name, message in [
        ("empty", r"a directory without .*; expected a \.json file \(COCO\), .* \(Pascal VOC\)"),
        ("both", "has classes.txt and .xml files"),
        ("none.yaml", "there is no such file or directory"),
        ("both/classes.txt", "the format of these annotations is not known; expected"),
        ("JPEGImages/1.jpg", "the format of these annotations is not known; expected"),
    ]:
        with pytest.raises(DataError, match=message):
            read_annotations(tmp_path / name, tmp_path / "JPEGImages")
    voc.add("1")
    with pytest.raises(DataError, match="there is no such directory"):
        read_annotations(voc.annotations, tmp_path / "elsewhere")


@pytest.fixture
def boxes():
    generator = torch.Generator().manual_seed(3)
    low = torch.randint(0, 20, (6, 5, 2), generator=generator)
    return torch.cat((low, low + torch.randint(1, 10, low.shape, generator=generator)), -1)  # xyxy in 40 x 30


@pytest.mark.parametrize("layout", ["yolo", "voc"])
def test_supervision_writes_the_same_boxes(tmp_path, boxes, layout):
    supervision = pytest.importorskip("supervision")
    labels = torch.arange(30).reshape(6, 5) % 3
    paths = [str(save_image(tmp_path / f"images/{k}.jpg")) for k in range(6)]
    detections = {
        path: supervision.Detections(xyxy=boxes[k].float().numpy(), class_id=labels[k].numpy())
        for k, path in enumerate(paths)
    }
    dataset = supervision.DetectionDataset(classes=sorted(NAMES), images=paths, annotations=detections)
    if layout == "yolo":
        dataset.as_yolo(annotations_directory_path=str(tmp_path / "labels"), data_yaml_path=str(tmp_path / "d.yaml"))
        found = read_annotations(tmp_path / "d.yaml", tmp_path / "images")
    else:
        dataset.as_pascal_voc(annotations_directory_path=str(tmp_path / "xml"))
        found = read_annotations(tmp_path / "xml", tmp_path / "images")
    assert found.faults == []
    assert [category.name for category in found.categories] == sorted(NAMES)
    assert found.labels.tolist() == labels.flatten().tolist()
    torch.testing.assert_close(found.boxes, boxes.reshape(-1, 4).float(), rtol=0, atol=1e-3)


def test_supervision_reads_the_same_polygons_and_boxes(yolo):
    supervision = pytest.importorskip("supervision")
    yolo.add("a", "1 0.1 0.2 0.5 0.3 0.3 0.9 0.2 0.4\n2 0.5 0.5 0.25 0.5\n0 0.21 0.35 0.1 0.2\n")
    dataset = supervision.DetectionDataset.from_yolo(str(yolo.images), str(yolo.labels), str(yolo.file))
    ((_, _, expected),) = list(dataset)
    found = yolo.read()
    assert found.labels.tolist() == expected.class_id.tolist()
    torch.testing.assert_close(found.boxes, torch.from_numpy(expected.xyxy).float(), rtol=0, atol=1e-3)


WORDS = st.one_of(
    st.floats().map(str), st.integers(-2, 4).map(str), st.sampled_from(["1e400", "-0", "1_0", "x", "\u0661", "0x1"])
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.lists(st.lists(WORDS, max_size=9).map(" ".join)).map("\n".join), st.text()))
def test_no_label_file_is_an_error_that_nobody_expects(yolo, text):
    yolo.add("a", "")
    (yolo.labels / "a.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
    found = yolo.read()
    assert len(found.images) == 1
    assert not found.boxes.isnan().any()
    assert all(fault.line is None or 1 <= fault.line <= len(text.splitlines()) for fault in found.faults)


TAGS = (
    "annotation",
    "object",
    "name",
    "bndbox",
    "xmin",
    "ymin",
    "xmax",
    "ymax",
    "difficult",
    "size",
    "width",
    "height",
)
PIECES = st.one_of(
    *(st.sampled_from([f"<{tag}>", f"</{tag}>", f"<{tag}/>"]) for tag in TAGS),
    st.sampled_from(["<!--", "-->", "&lt;", "&x;", "<![CDATA[", "]]>", "<?xml version='1.0'?>", "\x00"]),
    st.sampled_from([voc_object("car", 1, 2, 3, 4), voc_object("dog", "inf", -9, "1e400", 4, difficult=1)]),
    WORDS,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PIECES).map("".join), st.booleans())
def test_no_xml_file_is_an_error_that_nobody_expects(voc, text, is_wrapped):
    voc.add("1", voc_object("car", 5, 6, 20, 15))
    write(voc.annotations / "2.xml", f"<annotation>{text}</annotation>" if is_wrapped else text)
    found = read_annotations(voc.annotations, voc.images)
    assert found.categories[0].name == "car"
    assert not found.boxes.isnan().any()


def test_a_deeply_nested_xml_file_is_read(voc):
    voc.add("1", voc_object("car", 5, 6, 20, 15), "<a>" * 400_000 + "</a>" * 400_000)
    assert read_annotations(voc.annotations, voc.images).boxes.tolist() == [[4, 5, 20, 15]]


@pytest.mark.parametrize("key", ["nc", "kpt_shape", "names"])
def test_a_yaml_file_of_aliases_takes_no_memory(yolo, key):
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{k}: &a{k} [{', '.join(10 * [f'*a{k - 1}'])}]" for k in range(1, 12)]
    yolo.add("a", "0 0.5 0.5 1 0.5")
    names = "names: [b]\n" if key != "names" else ""
    yolo.file.write_text("\n".join(levels) + f"\n{names}{key}: *a11\n")
    with pytest.raises(DataError) as raised:
        yolo.read()
    assert len(str(raised.value)) < 1000

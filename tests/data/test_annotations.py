from __future__ import annotations

from typing import Any

import pytest

from detr_fast.data.annotations import Category, read_annotations
from detr_fast.data.faults import DataError, FaultKind


def test_labels_are_contiguous_in_order_of_id(folder: Any) -> None:
    annotations = read_annotations(folder.file, folder.images)
    assert annotations.categories == (Category(3, "dog"), Category(7, "cow"), Category(90, "cat"))
    assert [image.id for image in annotations.images] == [10, 20, 30]
    assert annotations.labels.tolist() == [1, 0, 2]
    assert annotations.boxes.tolist() == [[4, 6, 14, 18], [0, 0, 40, 30], [20, 10, 28, 18]]
    assert annotations.offsets == [0, 2, 3, 3]
    assert annotations.faults == []


def test_imposed_categories(folder: Any) -> None:
    imposed = [Category(90, "cat"), Category(5, "emu"), Category(7, "ox")]
    annotations = read_annotations(folder.file, folder.images, imposed)
    assert annotations.categories == tuple(imposed)
    assert annotations.labels.tolist() == [2, 0]
    assert [fault.kind for fault in annotations.faults] == [FaultKind.RENAMED_CATEGORY, FaultKind.UNKNOWN_CATEGORY]
    assert "'cow'" in annotations.faults[0].message
    assert "'ox'" in annotations.faults[0].message


def test_crowds_are_left_out_and_no_fault(folder: Any) -> None:
    folder.content["annotations"][0]["iscrowd"] = 1
    folder.write()
    annotations = read_annotations(folder.file, folder.images)
    assert annotations.labels.tolist() == [0, 2]
    assert annotations.faults == []


def test_no_annotations_at_all(folder: Any) -> None:
    folder.content["annotations"] = []
    folder.write()
    annotations = read_annotations(folder.file, folder.images)
    assert annotations.boxes.shape == (0, 4)
    assert annotations.offsets == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("{}", 'has no list "images", "annotations", "categories"'),
        ('{"images": [{}], "annotations": {}, "categories": []}', 'has no list "annotations";'),
        ("[]", "contains a list instead of an object"),
        ('{"images": [', "not a JSON file .*cut short"),
        ("\xff\xfe", "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
        ('{"images": [], "annotations": [], "categories": []}', "at least one image"),
        ('{"images": [{}], "annotations": [], "categories": []}', "no usable category"),
    ],
)
def test_unusable_annotation_file(folder: Any, text: str, message: str) -> None:
    folder.file.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=rf"instances\.json: .*{message}"):
        read_annotations(folder.file, folder.images)


def test_missing_annotation_file(folder: Any) -> None:
    with pytest.raises(DataError, match=r"none\.json: cannot read the annotation file: No such file"):
        read_annotations(folder.file.with_name("none.json"), folder.images)


def test_missing_image_directory(folder: Any) -> None:
    with pytest.raises(DataError, match=r"elsewhere: there is no such directory"):
        read_annotations(folder.file, folder.images.with_name("elsewhere"))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        (None, FaultKind.MALFORMED_BOX),
        ([1, 2, 3], FaultKind.MALFORMED_BOX),
        ([1, 2, 3, "4"], FaultKind.MALFORMED_BOX),
        ([1, 2, 3, None], FaultKind.MALFORMED_BOX),
        ([1, 2, 3, True], FaultKind.MALFORMED_BOX),
        ({"x": 1}, FaultKind.MALFORMED_BOX),
        ([NAN, 2, 3, 4], FaultKind.NON_FINITE_BOX),
        ([1, 2, INF, 4], FaultKind.NON_FINITE_BOX),
        ([1, -INF, 3, 4], FaultKind.NON_FINITE_BOX),
        ([1, 2, 10**400, 4], FaultKind.NON_FINITE_BOX),
        ([1, 2, 0, 4], FaultKind.BOX_WITHOUT_AREA),
        ([1, 2, 3, -4], FaultKind.BOX_WITHOUT_AREA),
        ([40, 2, 3, 4], FaultKind.BOX_OUTSIDE_IMAGE),
        ([1, -5, 3, 5], FaultKind.BOX_OUTSIDE_IMAGE),
        ([-1, 2, 3, 4], FaultKind.BOX_BEYOND_IMAGE),
        ([38, 2, 3, 4], FaultKind.BOX_BEYOND_IMAGE),
        ([1, 2, 3, 1e300], FaultKind.BOX_BEYOND_IMAGE),
        ([1, 2, 3, 10**30], FaultKind.BOX_BEYOND_IMAGE),
    ],
)
def test_faulty_boxes(folder: Any, box: Any, kind: FaultKind) -> None:
    folder.content["annotations"][0]["bbox"] = box
    folder.write()
    annotations = read_annotations(folder.file, folder.images)
    (fault,) = annotations.faults
    assert (fault.kind, fault.file, fault.image_id, fault.annotation_id) == (kind, str(folder.file), 10, 1)
    assert len(annotations.labels) == (3 if kind is FaultKind.BOX_BEYOND_IMAGE else 2)


@pytest.mark.parametrize("box", [[-0.4, 0, 5, 5], [30, 20, 10.3, 10.3], [0, 0, 40, 30], [0, 0, 1e-3, 1e-3]])
def test_sound_boxes(folder: Any, box: list[float]) -> None:
    folder.content["annotations"][0]["bbox"] = box
    folder.write()
    assert read_annotations(folder.file, folder.images).faults == []


@pytest.mark.parametrize(
    ("section", "entry", "kind"),
    [
        ("categories", "cat", FaultKind.MALFORMED_CATEGORY),
        ("categories", {"id": "four", "name": "x"}, FaultKind.MALFORMED_CATEGORY),
        ("categories", {"id": 4}, FaultKind.MALFORMED_CATEGORY),
        ("categories", {"id": 3, "name": "wolf"}, FaultKind.DUPLICATE_CATEGORY),
        ("images", 5, FaultKind.MALFORMED_IMAGE),
        ("images", {"id": 1.5, "file_name": "10.png", "width": 40, "height": 30}, FaultKind.MALFORMED_IMAGE),
        ("images", {"id": True, "file_name": "10.png", "width": 40, "height": 30}, FaultKind.MALFORMED_IMAGE),
        ("images", {"id": 2**63, "file_name": "10.png", "width": 40, "height": 30}, FaultKind.MALFORMED_IMAGE),
        ("images", {"id": 5, "file_name": "", "width": 40, "height": 30}, FaultKind.MALFORMED_IMAGE),
        ("images", {"id": 10, "file_name": "20.png", "width": 40, "height": 30}, FaultKind.DUPLICATE_IMAGE),
        ("images", {"id": 5, "file_name": "5.png", "width": 40, "height": 30}, FaultKind.MISSING_IMAGE),
        ("images", {"id": 5, "file_name": "a\0b", "width": 40, "height": 30}, FaultKind.MISSING_IMAGE),
        ("images", {"id": 5, "file_name": "\ud800", "width": 40, "height": 30}, FaultKind.MISSING_IMAGE),
        ("images", {"id": 5, "file_name": ".", "width": 40, "height": 30}, FaultKind.MISSING_IMAGE),
        ("images", {"id": 5, "file_name": "../secret.png", "width": 40, "height": 30}, FaultKind.UNSAFE_FILE_NAME),
        ("images", {"id": 5, "file_name": "a\\..\\..\\b", "width": 40, "height": 30}, FaultKind.UNSAFE_FILE_NAME),
        ("images", {"id": 5, "file_name": "/etc/passwd", "width": 40, "height": 30}, FaultKind.UNSAFE_FILE_NAME),
        ("images", {"id": 5, "file_name": "C:\\x.png", "width": 40, "height": 30}, FaultKind.UNSAFE_FILE_NAME),
        ("annotations", None, FaultKind.MALFORMED_ANNOTATION),
        ("annotations", {"image_id": 10, "category_id": 3, "bbox": [1, 1, 2, 2]}, FaultKind.MALFORMED_ANNOTATION),
        ("annotations", {"id": 9, "category_id": 3, "bbox": [1, 1, 2, 2]}, FaultKind.MALFORMED_ANNOTATION),
        (
            "annotations",
            {"id": 9, "image_id": [], "category_id": 3, "bbox": [1, 1, 2, 2]},
            FaultKind.MALFORMED_ANNOTATION,
        ),
        ("annotations", {"id": 9, "image_id": 10, "bbox": [1, 1, 2, 2]}, FaultKind.MALFORMED_ANNOTATION),
        (
            "annotations",
            {"id": 9, "image_id": 10, "category_id": 3, "bbox": [1, 1, 2, 2], "iscrowd": "no"},
            FaultKind.MALFORMED_ANNOTATION,
        ),
        (
            "annotations",
            {"id": 1, "image_id": 10, "category_id": 3, "bbox": [1, 1, 2, 2]},
            FaultKind.DUPLICATE_ANNOTATION,
        ),
        ("annotations", {"id": 9, "image_id": 11, "category_id": 3, "bbox": [1, 1, 2, 2]}, FaultKind.UNKNOWN_IMAGE),
        ("annotations", {"id": 9, "image_id": 10, "category_id": 4, "bbox": [1, 1, 2, 2]}, FaultKind.UNKNOWN_CATEGORY),
    ],
)
def test_a_faulty_entry_is_left_out(folder: Any, section: str, entry: Any, kind: FaultKind) -> None:
    """The faulty entry leaves no trace but its fault."""
    (folder.images.parent / "secret.png").touch()
    folder.content[section].append(entry)
    folder.write()
    annotations = read_annotations(folder.file, folder.images)
    assert [fault.kind for fault in annotations.faults] == [kind]
    assert [image.id for image in annotations.images] == [10, 20, 30]
    assert annotations.categories == (Category(3, "dog"), Category(7, "cow"), Category(90, "cat"))
    assert annotations.labels.tolist() == [1, 0, 2]


def test_annotations_of_a_missing_image_are_no_further_fault(folder: Any) -> None:
    (folder.images / "10.png").unlink()
    annotations = read_annotations(folder.file, folder.images)
    assert [fault.kind for fault in annotations.faults] == [FaultKind.MISSING_IMAGE]
    assert annotations.labels.tolist() == [2]


@pytest.mark.parametrize("size", [{"width": None}, {"height": 0}, {"width": "40"}])
def test_images_without_a_size_are_kept(folder: Any, size: dict[str, Any]) -> None:
    folder.content["images"][1].update(size)
    folder.write()
    annotations = read_annotations(folder.file, folder.images)
    assert [(fault.kind, fault.image_id) for fault in annotations.faults] == [(FaultKind.WRONG_IMAGE_SIZE, 10)]
    assert annotations.images[0].size is None
    assert len(annotations.labels) == 3


def test_all_that_is_wrong_with_an_annotation_is_named(folder: Any) -> None:
    folder.content["annotations"].append(folder.annotation(1, 11, 4, [0, 0, NAN, 1]))
    folder.write()
    assert {fault.kind for fault in read_annotations(folder.file, folder.images).faults} == {
        FaultKind.DUPLICATE_ANNOTATION,
        FaultKind.UNKNOWN_IMAGE,
        FaultKind.UNKNOWN_CATEGORY,
        FaultKind.NON_FINITE_BOX,
    }


def test_image_in_a_subdirectory(folder: Any) -> None:
    (folder.images / "sub").mkdir()
    folder.save_image("sub/5.png")
    folder.content["images"].append(folder.image(5, file_name="sub/5.png"))
    folder.write()
    annotations = read_annotations(folder.file, folder.images)
    assert (annotations.images[0].id, annotations.faults) == (5, [])

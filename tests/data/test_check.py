from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from detr_fast.data import CocoDetection, DataError, FaultKind, Resize, check_dataset, count_faults


def test_a_sound_data_set_has_no_fault(folder: Any) -> None:
    folder.content["annotations"][0]["iscrowd"] = 1
    folder.write()
    assert check_dataset(folder.images, folder.file) == []


def test_every_fault_is_reported_with_file_and_id(folder: Any) -> None:
    folder.save_image("40.jpg")
    folder.truncate("40.jpg")
    folder.save_image("50.png", size=(30, 40))
    folder.content["images"] += [
        folder.image(40, file_name="40.jpg"),
        folder.image(50),
        folder.image(60),
        folder.image(70, file_name="../70.png"),
        folder.image(10),
    ]
    folder.content["annotations"] += [
        folder.annotation(4, 40, 3, [0, 0, float("nan"), 5]),
        folder.annotation(5, 99, 3, [0, 0, 5, 5]),
    ]
    folder.write()
    faults = check_dataset(folder.images, folder.file, num_workers=2)
    images, file = folder.images, str(folder.file)
    assert [(fault.kind, fault.file, fault.image_id, fault.annotation_id) for fault in faults] == [
        (FaultKind.MISSING_IMAGE, file, 60, None),
        (FaultKind.UNSAFE_FILE_NAME, file, 70, None),
        (FaultKind.DUPLICATE_IMAGE, file, 10, None),
        (FaultKind.NON_FINITE_BOX, file, 40, 4),
        (FaultKind.UNKNOWN_IMAGE, file, 99, 5),
        (FaultKind.UNREADABLE_IMAGE, str(images / "40.jpg"), 40, None),
        (FaultKind.WRONG_IMAGE_SIZE, str(images / "50.png"), 50, None),
    ]
    assert str(faults[3]).startswith(f"{file}, image 40, annotation 4: non-finite box: ")
    assert str(faults[5]).startswith(f"{images}/40.jpg, image 40: unreadable image: cannot read this image: ")
    assert "the image is 30 x 40, the annotation file says 40 x 30" in str(faults[6])


def test_check_and_training_agree(folder: Any) -> None:
    folder.truncate("20.png")
    folder.save_image("30.png", size=(10, 10))
    folder.content["annotations"].append(folder.annotation(4, 10, 3, [0, 0, 0, 5]))
    folder.write()
    faults = check_dataset(folder.images, folder.file)
    dataset = CocoDetection(folder.images, folder.file, Resize(30), on_unreadable="skip")
    with pytest.warns(RuntimeWarning):
        loaded = [dataset[index] for index in range(len(dataset))]
    assert [sample is None for sample in loaded] == [False, True, False]
    assert dataset.report == count_faults(faults)
    assert len(faults) == 3


def test_an_unusable_annotation_file_is_an_error(folder: Any) -> None:
    folder.file.write_text("")
    with pytest.raises(DataError, match="is empty"):
        check_dataset(folder.images, folder.file)


@pytest.mark.parametrize("crowd", [False, True])
def test_no_annotations_at_all_are_reported(folder: Any, crowd: bool) -> None:
    folder.content["annotations"] = [folder.annotation(1, 10, 7, [4, 6, 10, 12], iscrowd=1)] if crowd else []
    folder.write()
    assert [fault.kind for fault in check_dataset(folder.images, folder.file)] == [FaultKind.NO_ANNOTATION]
    assert "no usable annotation" in CocoDetection(folder.images, folder.file, Resize(30)).describe()


def test_boxes_as_fractions_are_reported(folder: Any) -> None:
    for entry in folder.content["annotations"]:
        left, top, width, height = entry["bbox"]
        entry["bbox"] = [left / 40, top / 30, width / 40, height / 30]
    folder.write()
    (fault,) = check_dataset(folder.images, folder.file)
    assert fault.kind == FaultKind.BOXES_AS_FRACTIONS
    assert "all 3 boxes lie in the first pixel of their image; COCO's boxes are in pixels" in str(fault)
    assert CocoDetection(folder.images, folder.file, Resize(30)).report == {fault.kind: 1}
    folder.content["annotations"][0]["bbox"] = [0, 0, 1, 2]
    folder.write()
    assert not check_dataset(folder.images, folder.file)


def test_more_objects_than_queries_are_reported(folder: Any) -> None:
    assert not check_dataset(folder.images, folder.file, num_queries=2)
    (fault,) = check_dataset(folder.images, folder.file, num_queries=1)
    assert (fault.kind, fault.image_id, fault.message) == (FaultKind.MANY_OBJECTS, 10, "2 objects, but 1 queries")


def _turn(folder: Any, name: str, orientation: int, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[:, : size[0] // 2] = 255  # the left half of the stored pixels is white
    Image.fromarray(pixels).save(folder.images / name, exif=exif)


@pytest.mark.parametrize("setting", ["upright", "stored"])
@pytest.mark.parametrize(
    ("orientation", "stored", "told"),
    [
        (6, (30, 40), "upright"),  # the annotation file says 40 x 30
        (8, (30, 40), "upright"),
        (6, (40, 30), "stored"),
        (3, (40, 30), None),
        (2, (40, 30), None),
        (6, (50, 60), None),
    ],
)
def test_boxes_are_those_of_the_image_whose_size_is_stated(folder, setting, orientation, stored, told) -> None:
    _turn(folder, "10.png", orientation, stored)
    faults = check_dataset(folder.images, folder.file, orientation=setting)
    assert [fault.kind for fault in faults if fault.kind != FaultKind.WRONG_IMAGE_SIZE] == [FaultKind.TURNED_IMAGE]
    assert (len(faults) == 2) == (stored == (50, 60))
    taken = told or setting
    by = "the stated size" if told else f"the setting orientation={setting}"
    assert faults[0].image_id == 10
    assert f"the EXIF orientation is {orientation}; the boxes are taken for the {taken} image" in faults[0].message
    assert faults[0].message.endswith(f"by {by}")
    dataset = CocoDetection(folder.images, folder.file, Resize(30), orientation=setting)
    with Image.open(folder.images / "10.png") as image:
        expected = ImageOps.exif_transpose(image) if taken == "upright" else image.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = [dataset.load_image(index) for index in range(len(dataset))]
    assert np.array_equal(loaded[0].image, np.asarray(expected))
    assert dataset.report == count_faults(faults)


def test_an_unknown_orientation_is_named(folder: Any) -> None:
    with pytest.raises(ValueError, match='orientation must be "upright" or "stored", got 6'):
        CocoDetection(folder.images, folder.file, Resize(30), orientation=6)

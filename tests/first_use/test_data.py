"""The first `detr-fast check-data` on data of one's own: each mistake of an export is named, or there is no doubt.

Faults of single entries, EXIF orientations and images that cannot be read are in tests/data.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detr_fast.data import CocoDetection, Fault, FaultKind, Resize, check_dataset
from detr_fast.data.annotations import read_annotations, read_ground_truth
from tests.first_use.photographs import HEIGHT, WIDTH, DataSet, save_photograph


def _only_fault(data: DataSet) -> Fault:
    (fault,) = check_dataset(data.images, data.file)
    return fault


def _assert_complete(data: DataSet) -> None:
    """The images and objects are all used, in training and evaluation."""
    annotations = read_annotations(data.file, data.images)
    assert [Path(image.path).name for image in annotations.images] == ["1.png", "2.png", "3.png", "4.png", "5.png"]
    assert annotations.offsets == [0, 4, 8, 12, 16, 20]
    assert annotations.labels.tolist() == [1, 0] * 10
    truth = read_ground_truth(data.file, data.images)
    assert [entry["image_id"] for entry in truth["annotations"]] == [1 + row // 4 for row in range(20)]
    assert len(CocoDetection(data.images, data.file, Resize(32))) == 5


def test_sound_data_have_no_fault(data: DataSet) -> None:
    assert check_dataset(data.images, data.file) == []
    _assert_complete(data)


@pytest.mark.parametrize("convert", [str, float])
@pytest.mark.parametrize(
    ("section", "keys", "count"),
    [("images", ["id"], 5), ("annotations", ["id", "image_id", "category_id"], 60), ("categories", ["id"], 2)],
)
def test_ids_are_text_or_floating_point(
    data: DataSet, convert: Callable[[int], Any], section: str, keys: list[str], count: int
) -> None:
    data.change(section, **dict.fromkeys(keys, convert))
    fault = _only_fault(data)
    assert fault.kind == FaultKind.NON_INTEGER_ID
    assert fault.message == f'{count} ids in "{section}" are text or floating point, the first is {convert(1)!r}'
    _assert_complete(data)


@pytest.mark.parametrize("identifier", ["one", "01", " 1", "-1", "²", "9" * 30, 1.5, 1e300, True, None])
def test_ids_that_may_mean_anything_are_left_out_with_a_remedy(data: DataSet, identifier: Any) -> None:
    data.content["images"][0]["id"] = identifier
    data.write()
    faults = check_dataset(data.images, data.file)
    assert [fault.kind for fault in faults] == [FaultKind.MALFORMED_IMAGE] + [FaultKind.UNKNOWN_IMAGE] * 4
    assert faults[0].message.startswith('"id" must be an integer, got ')
    assert faults[0].message.endswith("number the images")


@pytest.mark.parametrize("prefix", ["train/", "./data/train/", "/home/ann/data/train/", "C:\\data\\train\\", "..\\"])
def test_file_names_have_the_directory_of_the_machine_that_exported_them(data: DataSet, prefix: str) -> None:
    data.change("images", file_name=lambda name: prefix + name)
    fault = _only_fault(data)
    assert fault.kind == FaultKind.FOREIGN_FILE_NAME
    assert "5 file names are taken after '" in fault.message
    _assert_complete(data)


def test_the_first_image_of_another_machine_is_missing(data: DataSet) -> None:
    data.change("images", file_name=lambda name: "C:\\data\\train\\" + name)
    (data.images / "1.png").unlink()
    faults = check_dataset(data.images, data.file)
    assert [fault.kind for fault in faults] == [FaultKind.FOREIGN_FILE_NAME, FaultKind.MISSING_IMAGE]
    assert len(read_annotations(data.file, data.images).images) == 4


def test_file_names_are_absolute_paths_of_this_machine(data: DataSet) -> None:
    data.change("images", file_name=lambda name: str(data.images / name))
    assert _only_fault(data).kind == FaultKind.FOREIGN_FILE_NAME
    _assert_complete(data)


def test_file_names_have_backslashes(data: DataSet) -> None:
    for number in range(1, 6):
        save_photograph(data.images / "left" / f"{number}.png")
    data.change("images", file_name=lambda name: f"left\\{name}")
    fault = _only_fault(data)
    assert fault.message == ("5 file names are taken with slashes in place of backslashes; the first is 'left/1.png'")
    _assert_complete(data)
    assert read_annotations(data.file, data.images).images[0].path == str(data.images / "left/1.png")


def test_file_names_of_several_directories_are_not_mixed_up(data: DataSet) -> None:
    """a/1.png and b/1.png are not both 1.png."""
    directories = iter("abab")
    for image in data.content["images"][1:]:
        image["file_name"] = f"{next(directories)}/1.png"
    data.content["images"][0]["file_name"] = "c/1.png"
    data.write()
    faults = check_dataset(data.images, data.file)
    assert [fault.kind for fault in faults] == [FaultKind.MISSING_IMAGE] * 5 + [FaultKind.NO_ANNOTATION]


def test_two_categories_have_one_name(data: DataSet) -> None:
    data.content["categories"][1]["name"] = "cup"
    data.write()
    fault = _only_fault(data)
    assert str(fault) == f"{data.file}: duplicate category name: categories 1 and 2 are both called 'cup'"
    _assert_complete(data)


@pytest.mark.parametrize("name", ["1.png", "./1.png"])
def test_an_image_file_is_listed_under_two_ids(data: DataSet, name: str) -> None:
    data.content["images"].append({**data.content["images"][0], "id": 9, "file_name": name})
    data.write()
    fault = _only_fault(data)
    assert (fault.kind, fault.image_id) == (FaultKind.DUPLICATE_FILE, 9)
    assert fault.message == f"{name!r} is the file of image 1, too"


def _as_corners(box: list[float]) -> list[float]:
    left, top, width, height = box
    return [left, top, left + width, top + height]


def test_boxes_are_corners(data: DataSet) -> None:
    data.change("annotations", bbox=_as_corners)
    faults = check_dataset(data.images, data.file)
    assert [fault.kind for fault in faults[:-1]] == [FaultKind.BOX_BEYOND_IMAGE] * 15
    assert faults[-1].kind == FaultKind.BOXES_AS_CORNERS
    assert "15 of 20 boxes leave their image" in faults[-1].message
    assert "convert them to [x1, y1, x2 - x1, y2 - y1]" in faults[-1].message
    assert "boxes as corners" in CocoDetection(data.images, data.file, Resize(32)).describe()


def test_a_few_boxes_tell_nothing_of_corners(tmp_path: Path) -> None:
    data = DataSet(tmp_path, num_images=2)
    data.change("annotations", bbox=_as_corners)
    assert {fault.kind for fault in check_dataset(data.images, data.file)} == {FaultKind.BOX_BEYOND_IMAGE}


def test_boxes_around_all_of_an_image_are_no_corners(data: DataSet) -> None:
    """They leave their images by a pixel, as some tools round, and as corners they would not."""
    data.change("annotations", bbox=lambda box: [1, 1, WIDTH, HEIGHT])
    assert {fault.kind for fault in check_dataset(data.images, data.file)} == {FaultKind.BOX_BEYOND_IMAGE}


@pytest.mark.parametrize(
    "box",
    [
        [30, 20, 30, 20],  # its width is not above its x, as of corners
        [4, 4, WIDTH, HEIGHT + 1],  # as corners it leaves the image
        [4, 4, 20, 3],
    ],
)
def test_boxes_that_leave_their_image_are_no_corners_if_one_cannot_be(data: DataSet, box: list[float]) -> None:
    data.change("annotations", bbox=_as_corners)
    data.content["annotations"][7]["bbox"] = box
    data.write()
    kinds = {fault.kind for fault in check_dataset(data.images, data.file)}
    assert kinds == {FaultKind.BOX_BEYOND_IMAGE}


@pytest.mark.parametrize(
    ("kind", "suffix", "white"), [("12 bits", ".png", 4095), ("12 bits", ".tif", 4095), ("float", ".tif", 1)]
)
def test_photographs_of_12_bits_and_floating_point_values_are_named(
    data: DataSet, kind: str, suffix: str, white: int
) -> None:
    """They are counted, without a warning for each of them in training, where often all images are of this kind."""
    for number in range(1, 6):
        save_photograph(data.images / f"{number}{suffix}", kind)
    data.change("images", file_name=lambda name: Path(name).stem + suffix)
    faults = check_dataset(data.images, data.file)
    assert [(fault.kind, fault.image_id) for fault in faults] == [(FaultKind.ASSUMED_RANGE, n) for n in range(1, 6)]
    assert faults[0].message == f"the values are taken to range from 0 to {white}, which holds the largest of them"
    dataset = CocoDetection(data.images, data.file, Resize(32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples = [dataset[index] for index in range(5)]
    assert dataset.report == {FaultKind.ASSUMED_RANGE: 5}
    assert all(sample is not None and int(sample.image.max()) > 250 for sample in samples)


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [("16 bits", ".png"), ("RGBA", ".png"), ("LA", ".png"), ("P", ".gif"), ("1", ".png"), ("CMYK", ".JPG")],
)
def test_photographs_of_other_kinds_are_read_without_a_fault(data: DataSet, kind: str, suffix: str) -> None:
    save_photograph(data.images / f"ü/eins{suffix}", kind)
    data.content["images"][0]["file_name"] = f"ü/eins{suffix}"
    data.write()
    assert check_dataset(data.images, data.file) == []
    sample = CocoDetection(data.images, data.file, Resize(32))[0]
    assert sample is not None
    assert sample.image[:, -8:].float().mean() > sample.image[:, :8].float().mean() + 100

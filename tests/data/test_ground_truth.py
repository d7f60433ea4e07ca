from __future__ import annotations

from typing import Any

import pytest

from detr_fast.data import CocoDetection, DataError, FaultKind, Resize, check_dataset
from detr_fast.data.annotations import read_ground_truth


def test_crowds_and_images_without_a_file_stay(folder: Any) -> None:
    folder.content["annotations"][0].update(iscrowd=1, area=55.5)
    (folder.images / "20.png").unlink()
    folder.write()
    truth = CocoDetection(folder.images, folder.file, Resize(30)).ground_truth()
    assert sorted(image["id"] for image in truth["images"]) == [10, 20, 30]
    assert [(entry["id"], entry["iscrowd"], entry["area"]) for entry in truth["annotations"]] == [
        (1, 1, 55.5),
        (2, 0, 1200.0),  # the area is not stated, so the box's is taken
        (3, 0, 64.0),
    ]
    assert {category["id"]: category["name"] for category in truth["categories"]} == {90: "cat", 3: "dog", 7: "cow"}


def test_what_is_faulty_is_left_out(folder: Any) -> None:
    folder.content["annotations"] += [
        folder.annotation(4, 10, 3, [0, 0, float("nan"), 5]),
        folder.annotation(5, 99, 3, [0, 0, 5, 5]),
        folder.annotation(6, 10, 4, [0, 0, 5, 5]),
        folder.annotation(1, 10, 3, [0, 0, 5, 5]),
    ]
    folder.write()
    truth = read_ground_truth(folder.file, folder.images)
    assert [entry["id"] for entry in truth["annotations"]] == [1, 2, 3]


def test_an_unusable_file_is_an_error(folder: Any) -> None:
    folder.file.write_text("{}")
    with pytest.raises(DataError, match="has no list"):
        read_ground_truth(folder.file, folder.images)


@pytest.mark.parametrize("area", [10**400, -1, float("nan"), float("inf"), "80", True])
def test_a_malformed_area_is_reported_and_replaced(folder: Any, area: Any) -> None:
    folder.content["annotations"][0]["area"] = area
    folder.write()
    (fault,) = check_dataset(folder.images, folder.file)
    assert (fault.kind, fault.annotation_id) == (FaultKind.MALFORMED_AREA, 1)
    assert read_ground_truth(folder.file, folder.images)["annotations"][0]["area"] == 120.0

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from detr_fast import drawing
from detr_fast.data import check_dataset, figures

# The images of 40 x 30 are drawn eight times as large.


def colored(path: Any, box: tuple[float, float, float, float], label: int) -> float:
    """The fraction of the pixels on the edges of a box in the color of a label."""
    pixels = np.asarray(Image.open(path)).astype(int)
    x1, y1, x2, y2 = (round(8 * value) for value in box)
    edges = np.concatenate(
        [pixels[y1, x1 : x2 + 1], pixels[y2, x1 : x2 + 1], pixels[y1 : y2 + 1, x1], pixels[y1 : y2 + 1, x2]]
    )
    return float((edges == drawing._color(label)).all(-1).mean())


def test_an_image_is_drawn_with_its_used_and_faulty_boxes(folder, tmp_path):
    folder.content["annotations"] += [
        folder.annotation(4, 10, 3, [30, 20, 20, 5]),  # beyond the edge, so that it is clipped and used
        folder.annotation(5, 10, 99, [2, 20, 10, 8]),
    ]
    folder.write()
    faults = check_dataset(folder.images, folder.file, figures=tmp_path / "drawn")
    assert [fault.box for fault in faults] == [(30, 20, 50, 25), (2, 20, 12, 28)]
    (path,) = (tmp_path / "drawn").iterdir()
    assert path.name == "10-10.png"
    # The categories are 3, 7 and 90, and the kinds of fault follow.
    assert colored(path, (4, 6, 14, 18), 1) > 0.7
    assert colored(path, (2, 20, 12, 28), 4) > 0.7
    assert colored(path, (30, 20, 39, 25), 3) > 0.7


def test_boxes_that_cannot_be_seen_are_drawn_at_the_edge(folder, tmp_path):
    boxes = [[100, 5, 10, 10], [20, 20, -5, 5], [1e300, -1e300, 1e300, 4], [float("nan"), 0, 1, 1], "box"]
    folder.content["annotations"] += [folder.annotation(4 + k, 30, 3, box) for k, box in enumerate(boxes)]
    folder.write()
    faults = check_dataset(folder.images, folder.file, figures=tmp_path)
    assert len(faults) == len(boxes)
    assert [fault.box is None for fault in faults] == [False, False, False, True, True]
    assert colored(tmp_path / "30-30.png", (0, 0, 39, 29), 6) > 0.4  # the frame, for the last kind


def test_what_has_no_image_is_not_drawn(folder, tmp_path):
    folder.truncate("10.png")
    (folder.images / "20.png").unlink()
    folder.save_image("30.png", size=(31, 40))
    faults = check_dataset(folder.images, folder.file, figures=tmp_path / "drawn")
    assert len(faults) == 3
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["30-30.png"]
    assert Image.open(tmp_path / "drawn/30-30.png").size == (31 * 8, 40 * 8)


def test_the_first_images_of_each_kind_are_drawn(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "MAX_DRAWN", 2)
    for k in range(100, 106):
        folder.content["images"].append(folder.image(k))
        folder.save_image(f"{k}.png")
        folder.content["annotations"].append(folder.annotation(k, k, 3, [0, 0, 0, 5]))
    folder.content["annotations"].append(folder.annotation(200, 105, 3, [0, 0, 50, 5]))
    folder.write()
    check_dataset(folder.images, folder.file, figures=tmp_path)
    assert sorted(path.stem for path in tmp_path.glob("*-*.png")) == ["100-100", "101-101", "105-105"]


@pytest.mark.parametrize("orientation", ["upright", "stored"])
def test_an_image_is_drawn_as_its_boxes_are_taken(folder, tmp_path, orientation):
    image = Image.new("RGB", (40, 40), "white")
    exif = image.getexif()
    exif[0x0112] = 3
    image.paste("black", (0, 0, 40, 20))
    image.save(folder.images / "30.png", exif=exif)
    folder.content["images"][0]["height"] = 40
    folder.write()
    check_dataset(folder.images, folder.file, orientation=orientation, figures=tmp_path)
    top = Image.open(tmp_path / "30-30.png").getpixel((160, 100))
    assert top == ((255, 255, 255) if orientation == "upright" else (0, 0, 0))

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


class CocoFolder:
    """A small data set on disk: three images of 40 x 30, of which the last has no objects."""

    def __init__(self, root: Path) -> None:
        self.images = root / "images"
        self.images.mkdir()
        self.file = root / "instances.json"
        self.content: dict[str, Any] = {
            "images": [self.image(30), self.image(10), self.image(20)],  # out of order on purpose
            "annotations": [
                self.annotation(1, 10, 7, [4, 6, 10, 12]),
                self.annotation(2, 10, 3, [0, 0, 40, 30]),
                self.annotation(3, 20, 90, [20, 10, 8, 8]),
            ],
            "categories": [{"id": 90, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 7, "name": "cow"}],
        }
        for entry in self.content["images"]:
            self.save_image(entry["file_name"], shade=entry["id"])
        self.write()

    @staticmethod
    def image(identifier: int, **changes: Any) -> dict[str, Any]:
        return {"id": identifier, "file_name": f"{identifier}.png", "width": 40, "height": 30, **changes}

    @staticmethod
    def annotation(identifier: int, image: int, category: int, box: Any, **changes: Any) -> dict[str, Any]:
        return {"id": identifier, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0, **changes}

    def save_image(self, name: str, shade: int = 128, size: tuple[int, int] = (40, 30)) -> Path:
        path = self.images / name
        Image.new("RGB", size, (shade, shade, shade)).save(path)
        return path

    def truncate(self, name: str) -> None:
        data = (self.images / name).read_bytes()
        (self.images / name).write_bytes(data[: len(data) // 2])

    def write(self) -> None:
        self.file.write_text(json.dumps(self.content))


@pytest.fixture
def folder(tmp_path: Path) -> CocoFolder:
    return CocoFolder(tmp_path)

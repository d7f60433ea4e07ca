"""Data sets as people have them: photographs of many kinds, and annotations as tools export them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 48, 32


def save_photograph(path: Path, kind: str = "RGB") -> Path:
    """Save a photograph of 48 x 32 pixels, bright on the right.

    Args:
        path: The file; its suffix determines the format.
        kind: A mode of Pillow, "12 bits", "16 bits", "float" for values in [0,1], or "turned" for one with the EXIF
            orientation of a camera that was held upright.
    """
    ramp = np.tile(np.linspace(0, 1, WIDTH), (HEIGHT, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray((ramp.T * 255).astype(np.uint8)).convert("RGB").save(path, exif=exif)
    elif kind in ("12 bits", "16 bits"):
        Image.fromarray((ramp * (2 ** int(kind[:2]) - 1)).astype(np.uint16)).save(path)
    elif kind == "float":
        Image.fromarray(ramp.astype(np.float32)).save(path)
    else:
        Image.fromarray((ramp * 255).astype(np.uint8)).convert("RGB").convert(kind).save(path)
    return path


class DataSet:
    """Photographs and their annotations, four objects in each, which a test can change before it writes them."""

    def __init__(self, root: Path, num_images: int = 5) -> None:
        self.images = root / "train"
        self.file = root / "train.json"
        self.content: dict[str, Any] = {
            "images": [
                {"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT}
                for number in range(1, num_images + 1)
            ],
            "annotations": [],
            "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "Löffel"}],
        }
        for image in self.content["images"]:
            save_photograph(self.images / image["file_name"])
            for left, top in ((4, 4), (24, 4), (4, 18), (26, 18)):
                self._add(image["id"], [left, top, 20, 12])
        self.write()

    def _add(self, image: int, bbox: list[float]) -> None:
        number = len(self.content["annotations"]) + 1
        entry = {"id": number, "image_id": image, "category_id": 1 + number % 2, "bbox": bbox, "iscrowd": 0}
        self.content["annotations"].append(entry)

    def write(self) -> None:
        """Write the annotation file."""
        self.file.write_text(json.dumps(self.content))

    def change(self, section: str, **changes: Any) -> None:
        """Replace keys of all entries of a section by what functions return for their values, and write the file."""
        for entry in self.content[section]:
            entry.update({key: change(entry[key]) for key, change in changes.items() if key in entry})
        self.write()

    def options(self) -> list[str]:
        """The options of eval and check-data that name this data set."""
        return ["--images", str(self.images), "--annotations", str(self.file)]

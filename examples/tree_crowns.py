"""Write a COCO data set of tree crowns, cut out of the annotated airborne photographs in the wheel of deepforest.

The wheel is only read, not installed::

    pip download --no-deps deepforest==2.1.0
    python examples/tree_crowns.py deepforest-2.1.0-py3-none-any.whl

The package, its photographs and annotations included, is distributed under the MIT License, (c) Ben Weinstein. The
photographs show sites of the National Ecological Observatory Network in Yellowstone, Florida and California.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from PIL import Image

FOLDER = "deepforest/data"  # in the wheel
HELD_OUT = "2019_YELL_2_541000_4977000_image_crop"  # of Yellowstone, 13 km from the photograph of most training tiles
MIN_VISIBLE = 0.5  # fraction of the area of a crown in a tile, below which the tile does not have its box
CORNERS = ("xmin", "ymin", "xmax", "ymax")

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass
class Split:
    """The tiles of the training or of the validation, with the sections of their COCO file."""

    directory: Path
    images: list[dict] = field(default_factory=list)
    annotations: list[dict] = field(default_factory=list)

    def add(self, name: str, tile: Image.Image, boxes: list[Box]) -> None:
        """Write a tile, and append its entries."""
        tile.save(self.directory / name)
        image = {"id": len(self.images) + 1, "file_name": name, "width": tile.width, "height": tile.height}
        self.images.append(image)
        for left, top, right, bottom in boxes:
            box = [left, top, right - left, bottom - top]
            entry = {"id": len(self.annotations) + 1, "image_id": image["id"], "category_id": 1, "bbox": box}
            self.annotations.append(entry | {"area": box[2] * box[3], "iscrowd": 0})

    def save(self) -> None:
        """Write the COCO file beside the directory of the tiles."""
        content = {"images": self.images, "annotations": self.annotations, "categories": [{"id": 1, "name": "tree"}]}
        self.directory.with_suffix(".json").write_text(json.dumps(content))
        print(f"{self.directory}: {len(self.images)} tiles, {len(self.annotations)} boxes")


def read_photographs(wheel: zipfile.ZipFile) -> dict[str, tuple[Image.Image, list[Box]]]:
    """Return the photographs that have an XML file beside them, by their names, with the boxes of their trees."""
    members = {PurePosixPath(name).name: name for name in wheel.namelist() if str(PurePosixPath(name).parent) == FOLDER}
    photographs = {}
    for name in sorted(members):
        stem, image = PurePosixPath(name).stem, members.get(PurePosixPath(name).stem + ".png")
        if name.endswith(".xml") and image is not None:
            root = ElementTree.fromstring(wheel.read(members[name]))
            boxes = [tuple(float(box.findtext(corner, "")) for corner in CORNERS) for box in root.iter("bndbox")]
            photographs[stem] = Image.open(io.BytesIO(wheel.read(image))).convert("RGB"), boxes
    return photographs


def clip(box: Box, left: int, top: int, size: int) -> Box | None:
    """Return what a tile shows of a box, in pixels of the tile; None where that is too little."""
    shifted = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    x1, y1, x2, y2 = (min(max(value, 0.0), float(size)) for value in shifted)
    area = (box[2] - box[0]) * (box[3] - box[1])
    visible = max(x2 - x1, 0.0) * max(y2 - y1, 0.0)
    return (x1, y1, x2, y2) if visible > 0 and visible >= MIN_VISIBLE * area else None


def cut(split: Split, name: str, photograph: Image.Image, boxes: list[Box], size: int, *, training: bool) -> None:
    """Cut a photograph into square tiles of equal size.

    Training tiles overlap by half, so that crowns at the edge of one are complete in another, and those without a crown
    are left out. Validation tiles do not overlap, so that no crown counts twice, and all are kept.
    """
    stride = size // 2 if training else size
    for top in range(0, photograph.height - size + 1, stride):
        for left in range(0, photograph.width - size + 1, stride):
            clipped = [clip(box, left, top, size) for box in boxes]
            shown = [box for box in clipped if box is not None]
            if shown or not training:
                tile = photograph.crop((left, top, left + size, top + size))
                split.add(f"{name}_{left}_{top}.png", tile, shown)


def write_tiles(wheel: Path, output: Path, held_out: str, size: int) -> None:
    """Write train/, train.json, val/ and val.json; the held-out photograph alone makes the validation."""
    if output.exists():
        raise ValueError(f"{output} exists; remove it, or choose another directory with --output")
    try:
        with zipfile.ZipFile(wheel) as opened:
            photographs = read_photographs(opened)
    except (OSError, zipfile.BadZipFile, ElementTree.ParseError) as error:
        raise ValueError(f"{wheel}: cannot be read as a wheel of deepforest ({error}); download it again") from error
    if held_out not in photographs or len(photographs) < 2:
        found = ", ".join(photographs) or "none"
        raise ValueError(
            f"{wheel}: needs a photograph to train with, and {held_out} to hold out. {FOLDER} has annotations of "
            f"{found}. Name another with --held-out, or download the release that docs/recipe.md names"
        )
    smallest = min(min(photograph.size) for photograph, _ in photographs.values())
    if size > smallest:
        raise ValueError(f"no tile of {size} pixels fits into a photograph of {smallest}; choose a smaller --tile")
    splits = {name: Split(output / name) for name in ("train", "val")}
    for split in splits.values():
        split.directory.mkdir(parents=True)
    for name, (photograph, boxes) in photographs.items():
        training = name != held_out
        cut(splits["train" if training else "val"], name, photograph, boxes, size, training=training)
    for split in splits.values():
        split.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("wheel", type=Path, help="the file that pip download --no-deps deepforest wrote")
    parser.add_argument("--output", type=Path, default=Path("data/crowns"), help="directory of the data set to write")
    parser.add_argument("--held-out", default=HELD_OUT, help="name of the photograph for the validation")
    parser.add_argument("--tile", type=int, default=128, help="width and height of the tiles in pixels")
    options = parser.parse_args()
    if options.tile < 32:
        parser.error("--tile must be at least 32 pixels")
    try:
        write_tiles(options.wheel, options.output, options.held_out, options.tile)
    except ValueError as error:
        sys.exit(f"tree_crowns: {error}")


if __name__ == "__main__":
    main()

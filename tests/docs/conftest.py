"""A directory with the files that the documentation's commands and snippets name."""

from __future__ import annotations

import io
import shutil
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from detr_fast import DETR, detr_resnet50
from detr_fast.data import make_shapes

ROOT = Path(__file__).parents[2]

# Trees of the photographs in the wheel: left, top, right, bottom in pixels.
TRAINING_TREES = [(10, 20, 40, 60), (100, 30, 140, 70), (150, 150, 190, 180), (230, 80, 256, 120)]
HELD_OUT_TREES = [(20, 20, 60, 50), (118, 100, 158, 140), (200, 180, 240, 250)]


@pytest.fixture(scope="session")
def crowns_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel with the layout of deepforest's: annotated photographs, on which trees are white and the ground black."""
    path = tmp_path_factory.mktemp("wheel") / "deepforest-2.1.0-py3-none-any.whl"
    photographs = {
        "2019_YELL_2_528000_4978000_image_crop2": TRAINING_TREES,
        "2019_YELL_2_541000_4977000_image_crop": HELD_OUT_TREES,
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for name, trees in photographs.items():
            image = Image.new("RGB", (256, 256))
            for tree in trees:
                image.paste((255, 255, 255), tree)
            wheel.writestr(f"deepforest/data/{name}.png", _as_png(image))
            corners = "".join(
                f"<object><name>Tree</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax>"
                f"<ymax>{y2}</ymax></bndbox></object>"
                for x1, y1, x2, y2 in trees
            )
            wheel.writestr(f"deepforest/data/{name}.xml", f"<annotation>{corners}</annotation>")
        wheel.writestr("deepforest/data/unannotated.png", _as_png(Image.new("RGB", (256, 256))))
        wheel.writestr("deepforest/data/OSBS_029.csv", "image_path,xmin,ymin,xmax,ymax,label\n")
        wheel.writestr("deepforest/main.py", "")
    return path


def _as_png(image: Image.Image) -> bytes:
    written = io.BytesIO()
    image.save(written, "png")
    return written.getvalue()


@pytest.fixture(scope="session")
def workdir(tmp_path_factory: pytest.TempPathFactory, crowns_wheel: Path) -> Path:
    """The checkout as a user sees it after training: data in ``my``, a model in ``runs/demo/model``, weights."""
    directory = tmp_path_factory.mktemp("checkout")
    shutil.copy(crowns_wheel, directory)
    for path in ROOT.iterdir():
        if path.name in ("benchmarks", "examples", "tests", "pyproject.toml"):
            (directory / path.name).symlink_to(path)

    shapes = make_shapes(directory / "shapes", 4, 4, image_size=32)
    for split in ("train", "val"):
        shutil.copytree(shapes / split, directory / "my" / split)
        shutil.copy(shapes / "annotations" / f"instances_{split}.json", directory / "my" / f"{split}.json")
    shutil.copytree(shapes / "val", directory / "my" / "new_images")
    shutil.copy(shapes / "val" / "000000.png", directory / "street.png")

    if find_spec("datasets") is not None:
        _write_parquet(shapes / "train", directory / "cats.parquet")

    torch.manual_seed(0)
    tiny = DETR(
        num_classes=3,
        backbone="resnet_tiny",
        hidden_dim=16,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        dim_feedforward=16,
        num_queries=6,
        categories=[{"id": 3, "name": "triangle"}, {"id": 7, "name": "circle"}, {"id": 12, "name": "rectangle"}],
        image_size=32,
        max_image_size=32,
    )
    tiny.save_pretrained(directory / "runs/demo/model")
    torch.save({"model": detr_resnet50().state_dict()}, directory / "detr-r50.pth")
    return directory


def _write_parquet(images: Path, file: Path) -> None:
    import datasets

    objects = {"bbox": datasets.List(datasets.Value("float32")), "category": datasets.ClassLabel(names=["cat"])}
    rows = {
        "image": [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(images.iterdir())],
        "objects": [[{"bbox": [2, 3, 20, 10], "category": 0}] for _ in images.iterdir()],
    }
    features = datasets.Features({"image": datasets.Image(), "objects": datasets.List(objects)})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(file))

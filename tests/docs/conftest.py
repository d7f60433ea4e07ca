"""A directory with the files that the documentation's commands and snippets name."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from detr_fast import DETR, detr_resnet50
from detr_fast.data import make_shapes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout as a user sees it after training: data in ``my``, a model in ``runs/demo/model``, weights."""
    directory = tmp_path_factory.mktemp("checkout")
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

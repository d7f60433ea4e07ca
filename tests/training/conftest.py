from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from detr_fast.data import Augmentation, make_shapes
from detr_fast.training import DataConfig, ModelConfig, OptimConfig, TrainConfig


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its state, precision included, for the life of a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of shapes: 12 training images and 5 validation images."""
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", 12, 5, image_size=32)


@pytest.fixture
def config(shapes: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Builds a configuration that trains in seconds; overrides go to the part that has the field."""

    def build(**overrides: Any) -> TrainConfig:
        parts: dict[str, Any] = {
            "model": {
                "backbone": "resnet_tiny",
                "hidden_dim": 16,
                "num_heads": 2,
                "num_encoder_layers": 1,
                "num_decoder_layers": 2,
                "dim_feedforward": 16,
                "num_queries": 6,
            },
            "data": {
                "train_images": str(shapes / "train"),
                "train_annotations": str(shapes / "annotations/instances_train.json"),
                "val_images": str(shapes / "val"),
                "val_annotations": str(shapes / "annotations/instances_val.json"),
                "batch_size": 4,
                "num_workers": 0,
                "augmentation": Augmentation(scales=(32,), max_size=32, crop=0.0),
                "eval_size": 32,
                "eval_max_size": 32,
            },
            "optim": {"lr": 1e-3, "backbone_lr": 1e-3, "schedule": "cosine"},
        }
        top: dict[str, Any] = {"output": str(tmp_path / "run"), "epochs": 2, "log_every": 1, "device": "cpu"}
        classes = {"model": ModelConfig, "data": DataConfig, "optim": OptimConfig}
        for name, value in overrides.items():
            options = next((parts[part] for part, cls in classes.items() if name in cls.__dataclass_fields__), top)
            options[name] = value
        return TrainConfig(**{name: cls(**parts[name]) for name, cls in classes.items()}, **top)

    return build

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detr_fast import Targets
from detr_fast.ops import faults

if TYPE_CHECKING:  # the model needs the extra "train", the tests of the ops do not
    from detr_fast import DETR

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before any kernel is defined


GOLDEN = Path(__file__).parent / "golden"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("there is no GPU")


@pytest.fixture(autouse=True)
def own_status_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """What kernels report during a test is not read during the next one."""
    monkeypatch.setattr(faults, "_words", {})


@pytest.fixture
def empty_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill ``torch.empty`` with NaN, or a large negative integer, so that a result that was not written shows."""
    empty = torch.empty

    def filled(*args: Any, **kwargs: Any) -> Tensor:
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.fill_(-(2**7))

    monkeypatch.setattr(torch, "empty", filled)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """The arrays of tests/golden/NAME.npz by their keys."""
    return lambda name: dict(np.load(GOLDEN / f"{name}.npz"))


class TinyBackbone(nn.Module):
    """The backbone of the golden model: five strided convolutions, stride 32."""

    num_channels = 32

    def __init__(self) -> None:
        from detr_fast.models.resnet import FrozenBatchNorm2d

        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = FrozenBatchNorm2d(8)
        widths = (8, 8, 16, 16, 32)
        for number in range(1, 5):
            conv = nn.Conv2d(widths[number - 1], widths[number], 3, stride=2, padding=1, bias=False)
            self.add_module(f"layer{number}", nn.Sequential(conv, FrozenBatchNorm2d(widths[number]), nn.ReLU()))

    def forward(self, images: Tensor) -> Tensor:
        x = self.bn1(self.conv1(images)).relu()
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


@pytest.fixture(scope="session")
def tiny_backbone() -> type[TinyBackbone]:
    return TinyBackbone


@pytest.fixture(scope="session")
def tiny_detr(golden: Callable[[str], dict[str, np.ndarray]]) -> Callable[..., DETR]:
    """Builds the golden model, with the golden weights, in a dtype."""
    arrays = golden("tiny_official_post_sine")
    weights = {name.removeprefix("sd/"): torch.from_numpy(a) for name, a in arrays.items() if name.startswith("sd/")}

    def build(dtype: torch.dtype = torch.float32) -> DETR:
        from detr_fast import DETR

        model = DETR(
            num_classes=6,
            backbone=TinyBackbone(),
            hidden_dim=32,
            num_heads=4,
            num_encoder_layers=2,
            num_decoder_layers=2,
            dim_feedforward=64,
            dropout=0.0,
            num_queries=10,
        )
        model.load_state_dict(weights, strict=True)
        return model.to(dtype)

    return build


class Case(NamedTuple):
    """Inputs of a golden case."""

    logits: Tensor  # [L,B,Q,C+1]
    boxes: Tensor  # [L,B,Q,4]
    targets: Targets


@pytest.fixture(scope="session")
def golden_case(golden: Callable[[str], dict[str, np.ndarray]]) -> Callable[..., Case]:
    inputs = golden("inputs")

    def load(name: str, dtype: torch.dtype = torch.float32) -> Case:
        logits, boxes, labels, target_boxes = (
            torch.from_numpy(inputs[f"{name}/{key}"]) for key in ("logits", "boxes", "tgt_labels", "tgt_boxes")
        )
        counts = inputs[f"{name}/counts"].tolist()
        images = zip(labels.split(counts), target_boxes.split(counts), strict=True)
        targets = Targets.from_list([{"labels": label, "boxes": box} for label, box in images])
        return Case(logits.to(dtype), boxes.to(dtype), targets)

    return load


@pytest.fixture
def random_targets() -> Callable[..., Targets]:
    """Random targets: ``sizes`` of them in the images, labels below ``num_classes``."""

    def make(sizes: list[int], num_classes: int, seed: int = 0) -> Targets:
        generator = torch.Generator().manual_seed(seed)
        return Targets.from_list(
            [
                {
                    "labels": torch.randint(num_classes, (n,), generator=generator),
                    "boxes": torch.rand(n, 4, generator=generator) * 0.5 + 0.2,
                }
                for n in sizes
            ]
        )

    return make


SMALL = {
    "backbone": "resnet_tiny",
    "hidden_dim": 16,
    "num_heads": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "dim_feedforward": 32,
    "num_queries": 5,
    "image_size": 48,
    "max_image_size": 64,
}


@pytest.fixture
def small_detr() -> Callable[..., DETR]:
    """Builds a small model with random weights, always the same ones."""

    def build(num_classes: int = 3, **overrides: Any) -> DETR:
        from detr_fast import DETR

        torch.manual_seed(0)
        return DETR(num_classes, **(SMALL | overrides))

    return build

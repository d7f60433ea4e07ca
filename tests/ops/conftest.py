from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from detr_fast import Targets


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

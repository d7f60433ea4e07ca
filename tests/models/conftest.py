from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from detr_fast import DETR

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
        torch.manual_seed(0)
        return DETR(num_classes, **(SMALL | overrides))

    return build

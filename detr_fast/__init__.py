"""DETR, and the hot paths of DETR-like detectors as interchangeable, verified implementations."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from detr_fast import ops
from detr_fast.criterion import HungarianMatcher, SetCriterion
from detr_fast.ops.dispatch import use_backend
from detr_fast.ops.faults import raise_faults
from detr_fast.ops.targets import Targets
from detr_fast.ops.weights import LossWeights, MatchWeights

if TYPE_CHECKING:
    from detr_fast.models import (
        DETR,
        detr_resnet18,
        detr_resnet34,
        detr_resnet50,
        detr_resnet50_dc5,
        detr_resnet101,
        detr_resnet101_dc5,
    )

try:
    __version__ = version("detr_fast")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_MODELS = (
    "DETR",
    "detr_resnet18",
    "detr_resnet34",
    "detr_resnet50",
    "detr_resnet50_dc5",
    "detr_resnet101",
    "detr_resnet101_dc5",
)

__all__ = [
    "DETR",
    "HungarianMatcher",
    "LossWeights",
    "MatchWeights",
    "SetCriterion",
    "Targets",
    "detr_resnet18",
    "detr_resnet34",
    "detr_resnet50",
    "detr_resnet50_dc5",
    "detr_resnet101",
    "detr_resnet101_dc5",
    "ops",
    "raise_faults",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    # The models need the "train" extra; the ops do not.
    if name in _MODELS:
        return getattr(import_module("detr_fast.models"), name)
    raise AttributeError(f"module 'detr_fast' has no attribute {name!r}")

"""DETR, and the hot paths of DETR-like detectors as interchangeable, verified implementations."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from detr_fast.lazy import lazy_attributes

if TYPE_CHECKING:
    from detr_fast import ops
    from detr_fast.criterion import HungarianMatcher, SetCriterion
    from detr_fast.models import (
        DETR,
        detr_resnet18,
        detr_resnet34,
        detr_resnet50,
        detr_resnet50_dc5,
        detr_resnet101,
        detr_resnet101_dc5,
    )
    from detr_fast.ops import LossWeights, MatchWeights, Targets, raise_faults, use_backend
else:  # the command line prints its help without torch, and only the models need the "train" extra
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "detr_fast.criterion": ("HungarianMatcher", "SetCriterion"),
            "detr_fast.models": (
                "DETR",
                "detr_resnet18",
                "detr_resnet34",
                "detr_resnet50",
                "detr_resnet50_dc5",
                "detr_resnet101",
                "detr_resnet101_dc5",
            ),
            "detr_fast.ops": ("LossWeights", "MatchWeights", "Targets", "raise_faults", "use_backend"),
        },
        submodules=["ops"],
    )

try:
    __version__ = version("detr_fast")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

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

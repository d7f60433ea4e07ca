"""What the comparisons of all parts of MMDetection share."""

from __future__ import annotations

from collections.abc import Hashable
from copy import deepcopy
from importlib.metadata import packages_distributions
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import nn

from detr_fast.integrations.evidence import SIZES, Finding, random_targets, report
from detr_fast.ops.boxes import box_cxcywh_to_xyxy

PACKAGE = packages_distributions().get("mmdet", ["mmdet"])[0]  # or its continuation, which has the same modules
IMAGE = (480, 640)  # height and width in pixels


def keep_or_leave(module: Any, fast: type, finding: Finding) -> None:
    """Make an object of a fast type one of its base class if both compute something else, and say so.

    Args:
        module: The object; that of a subclass of the fast type is left as it is.
        fast: The fast type, derived from a class of MMDetection or mmcv.
        finding: The comparison of both.
    """
    if finding.reason is not None and type(module) is fast:
        module.__class__ = fast.__mro__[1]
        report(PACKAGE, [finding])


def identity(*objects: Any) -> Hashable:
    """Return the types of objects and their plain settings, which decide what the objects compute."""
    plain = (bool, int, float, str, type(None))
    return tuple(
        (type(part), *sorted((k, v) for k, v in vars(part).items() if isinstance(v, plain) and k != "training"))
        for part in objects
    )


def with_class(module: Any, of: type) -> Any:
    """Return a copy of a module as an object of another class."""
    twin = deepcopy(module)
    twin.__class__ = of
    return twin.cpu() if isinstance(twin, nn.Module) else twin


def random_instances(generator: torch.Generator, num_classes: int) -> list[InstanceData]:
    """Return random targets of images of one size: ``bboxes`` [t,4], xyxy in pixels, and ``labels`` [t]."""
    height, width = IMAGE
    scale = torch.tensor([width, height, width, height])
    return [
        InstanceData(bboxes=box_cxcywh_to_xyxy(image["boxes"]) * scale, labels=image["labels"])
        for image in random_targets(SIZES, num_classes, generator)
    ]

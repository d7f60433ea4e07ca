"""Detectors of MMDetection that build their layers without the registry."""

from __future__ import annotations

from typing import Any, TypeVar

from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.detectors import DETR, DINO, DeformableDETR
from mmdet.models.layers import SinePositionalEncoding
from mmdet.registry import MODELS
from torch import nn

from detr_fast.integrations.evidence import Finding, report
from detr_fast.integrations.mmdet.comparisons import PACKAGE
from detr_fast.integrations.mmdet.layers import (
    FastMultiScaleDeformableAttention,
    FastSinePositionalEncoding,
    find_attention,
    find_encoding,
)

Model = TypeVar("Model", bound=nn.Module)


FAST_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    MultiScaleDeformableAttention: FastMultiScaleDeformableAttention,
    SinePositionalEncoding: FastSinePositionalEncoding,
}


def accelerate(model: Model, check: bool = True) -> Model:
    """Run the multi-scale deformable attention and the positional encodings of a detector on the ops of this package.

    The model is modified in place. Outputs, gradients and checkpoints do not change. Layers that this release of
    MMDetection or mmcv computes in another way are left as they are, and a warning in the log says so.

    Args:
        model: A detector of MMDetection, such as Mask2Former or Grounding DINO.
        check: Whether to compare the layers with their replacements; otherwise all are replaced.

    Returns:
        The model.
    """
    findings: list[Finding] = []
    for module in model.modules():
        if type(module) not in FAST_LAYERS:
            continue
        if check:
            is_attention = type(module) is MultiScaleDeformableAttention
            findings.append(find_attention(module) if is_attention else find_encoding(module))
        if not check or findings[-1].reason is None:
            module.__class__ = FAST_LAYERS[type(module)]
    report(PACKAGE, findings)
    return model


def restore(model: Model) -> Model:
    """Undo :func:`accelerate`; any other model is unchanged."""
    originals = {fast: original for original, fast in FAST_LAYERS.items()}
    for module in model.modules():
        if type(module) in originals:
            module.__class__ = originals[type(module)]
    return model


@MODELS.register_module()
class FastDETR(DETR):
    """The DETR of MMDetection, which builds its positional encoding without the registry, with the fast encoding."""

    def __init__(self, *args: Any, check: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        accelerate(self, check=check)


@MODELS.register_module()
class FastDeformableDETR(DeformableDETR):
    """The Deformable DETR of MMDetection, which builds its layers without the registry, with the fast layers."""

    def __init__(self, *args: Any, check: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        accelerate(self, check=check)


@MODELS.register_module()
class FastDINO(DINO):
    """The DINO of MMDetection, which builds its layers without the registry, with the fast layers."""

    def __init__(self, *args: Any, check: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        accelerate(self, check=check)

"""The integration of RF-DETR: one call to each op for all layers and query groups, and one for each attention.

>>> accelerate(model)
>>> accelerate(criterion)
"""

from __future__ import annotations

from typing import TypeVar

from rfdetr.models.criterion import SetCriterion
from rfdetr.models.matcher import HungarianMatcher
from rfdetr.models.ops.modules import MSDeformAttn
from torch import nn

from detr_fast.integrations.evidence import Finding, report
from detr_fast.integrations.rfdetr.attention import FastAttention, find_attention
from detr_fast.integrations.rfdetr.criterion import (
    FastCriterion,
    FastCriterionWithoutCardinality,
    find_loss,
    supports_losses,
)
from detr_fast.integrations.rfdetr.matching import FastMatcher, find_matcher

__all__ = ["FastAttention", "FastCriterion", "FastMatcher", "accelerate", "restore"]

Module = TypeVar("Module", bound=nn.Module)


def accelerate(
    module: Module, matcher: bool = True, loss: bool = True, deformable_attention: bool = True, check: bool = True
) -> Module:
    """Run RF-DETR on the ops of this package; outputs, losses, gradients and matches do not change.

    The module is modified in place, and other instances are not affected. A second call replaces the selection of
    the first. Masks, keypoints, fixed-size target padding and costs that are not finite are computed by RF-DETR, and
    so is the attention of a model that is exported by RF-DETR. With several processes call it in all of them.

    A part is taken from any release of RF-DETR that computes it as this package does. What is replaced is compared by
    its parameters and, once per process, by its results on small random inputs. Parts that differ are left to RF-DETR,
    and a warning in the log names them with the difference.

    Args:
        module: A model, as ``rfdetr.models.build_model_from_config`` returns it, or a criterion built by
            ``rfdetr.models.build_criterion_from_config``.
        matcher: Whether a criterion matches all layers and groups in one call.
        loss: Whether a criterion computes the class and box losses of all layers in one call. This applies to
            ``ia_bce_loss``, the default of RF-DETR.
        deformable_attention: Whether a model computes each multi-scale deformable attention by
            :func:`detr_fast.ops.fused_deformable_attention`, in training and in inference.
        check: Whether to compare the parts; otherwise every part that exists is replaced.

    Returns:
        The module.

    Raises:
        ValueError: The module is no criterion of RF-DETR, or one with a custom matcher, and has no deformable
            attention of RF-DETR.
    """
    restore(module)
    attentions = [part for part in module.modules() if type(part) is MSDeformAttn]
    is_criterion = type(module) is SetCriterion and type(module.matcher) is HungarianMatcher
    if not attentions and not is_criterion:
        raise ValueError(
            "expected a model of RF-DETR with multi-scale deformable attention, or its SetCriterion with its "
            f"HungarianMatcher, got {type(module).__name__} with {type(getattr(module, 'matcher', None)).__name__}"
        )
    findings: list[Finding] = []
    if is_criterion and matcher:
        findings.append(find_matcher(module.matcher) if check else Finding("the matching"))
        if findings[-1].reason is None:
            module.matcher.__class__ = FastMatcher
    if is_criterion and loss and supports_losses(module):
        found = find_loss(module) if check else [Finding("the losses"), Finding("the cardinality error")]
        findings += found
        if found[0].reason is None:
            module.__class__ = FastCriterion if found[-1].reason is None else FastCriterionWithoutCardinality
    if deformable_attention and attentions:
        findings.append(find_attention() if check else Finding("the attention"))
        if findings[-1].reason is None:
            for attention in attentions:
                attention.__class__ = FastAttention
    report("rfdetr", findings)
    return module


def restore(module: Module) -> Module:
    """Undo :func:`accelerate`; any other module is unchanged."""
    if isinstance(module, FastCriterion):
        module.__class__ = SetCriterion
    if type(getattr(module, "matcher", None)) is FastMatcher:
        module.matcher.__class__ = HungarianMatcher
    for part in module.modules():
        if type(part) is FastAttention:
            part.__class__ = MSDeformAttn
    return module

"""The integration of Hugging Face transformers: one call before training, and one to undo it.

>>> accelerate(model)
>>> trainer.train()
>>> restore(model)
"""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from detr_fast.integrations.huggingface.attention import replace_attention, restore_attention
from detr_fast.integrations.huggingface.criteria import FAMILIES, FastLoss
from detr_fast.integrations.huggingface.position import FastEncoding, encoding_options
from detr_fast.integrations.huggingface.rebinding import FastAssignment
from detr_fast.integrations.versions import require_version

__all__ = ["TESTED_VERSIONS", "accelerate", "restore"]

TESTED_VERSIONS = ("5.23",)

MATCHER_MODULES = ("Mask2FormerHungarianMatcher", "MaskFormerHungarianMatcher")  # are submodules of the model

Model = TypeVar("Model", bound=nn.Module)


def accelerate(
    model: Model,
    matcher: bool = True,
    loss: bool = True,
    position_encoding: bool = True,
    deformable_attention: bool = True,
) -> Model:
    """Run a detector on the ops of this package; outputs, losses, gradients and matches do not change.

    The model is modified in place, and other instances are not affected. Its parameters, buffers, submodules,
    configuration, and the files that ``save_pretrained`` writes do not change. Call it before the model is wrapped or
    compiled. A second call replaces the selection of the first.

    Args:
        model: A model for object detection or segmentation of a supported family, or any model with multi-scale
            deformable attention.
        matcher: Whether to match all layers of a step in one call. If the matching costs contain masks, only the
            assignment is computed by :func:`detr_fast.ops.linear_sum_assignment`.
        loss: Whether to compute the class and box losses of all layers in one call.
        position_encoding: Whether to compute the sine position encoding of the padding mask.
        deformable_attention: Whether to sample the values of multi-scale deformable attention by
            :func:`detr_fast.ops.multi_scale_deformable_attention`, in training and in inference.

    Returns:
        The model.

    Raises:
        UntestedVersionError: The installed release of transformers is not tested.
        ValueError: The model has no part that can be replaced.
    """
    require_version("transformers", TESTED_VERSIONS)
    restore(model)
    matchers = [module for module in model.modules() if type(module).__name__ in MATCHER_MODULES]
    loss_function = _loss_function(model)
    has_attention = deformable_attention and replace_attention(model)
    if loss_function is None and not matchers and not has_attention:
        raise ValueError(
            f"{type(model).__name__} has no multi-scale deformable attention and none of the supported loss functions: "
            f"{', '.join(FAMILIES)}. Pass the model before it is wrapped or compiled, and without a custom "
            "loss_function"
        )
    if loss_function is not None and (matcher or loss):
        model.loss_function = FastLoss(loss_function, matcher=matcher, loss=loss)  # type: ignore[assignment]
    if matcher:
        for module in matchers:
            module.forward = FastAssignment(module)
    if position_encoding:
        for module in model.modules():
            options = encoding_options(module)
            if options is not None:
                module.forward = FastEncoding(module, options)
    return model


def restore(model: Model) -> Model:
    """Undo :func:`accelerate`; any other model is unchanged."""
    if isinstance(model.__dict__.get("_loss_function"), FastLoss):
        del model.__dict__["_loss_function"]
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), (FastEncoding, FastAssignment)):
            del module.__dict__["forward"]
    restore_attention(model)
    return model


def _loss_function(model: Any) -> Any:
    """Return the loss function of the model; None if it is not supported."""
    if getattr(model, "loss_type", None) is None:  # transformers would use the loss of language models
        return None
    found = model.loss_function
    return found if getattr(found, "__name__", None) in FAMILIES else None

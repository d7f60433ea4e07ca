"""Detectors of Hugging Face transformers on our hot paths: one line before training, one to undo it.

>>> accelerate(model)
>>> trainer.train()
>>> restore(model)
"""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from detr_fast.integrations.huggingface.criteria import FAMILIES, FastLoss
from detr_fast.integrations.huggingface.position import FastEncoding, encoding_options
from detr_fast.integrations.huggingface.rebinding import OwnAssignment
from detr_fast.integrations.versions import require_version

__all__ = ["TESTED_VERSIONS", "accelerate", "restore"]

TESTED_VERSIONS = ("5.23",)

ASSIGNING = ("Mask2FormerHungarianMatcher", "MaskFormerHungarianMatcher")  # matchers that are modules of the model

Model = TypeVar("Model", bound=nn.Module)


def accelerate(model: Model, matcher: bool = True, loss: bool = True, position_encoding: bool = True) -> Model:
    """Let a detector compute with our ops; losses, gradients and matches stay what they are.

    Only this instance changes, in place. Parameters, buffers, submodules, configuration and what ``save_pretrained``
    writes stay the same. Call it before the model is wrapped or compiled; calling it again replaces the choice.

    Args:
        model: a model for object detection or segmentation of the families in the README's table.
        matcher: match all layers of a step in one call, or where the costs are of masks, assign with our solver.
        loss: compute class and box losses of all layers in one call.
        position_encoding: compute the sine position encoding of the padding mask.

    Returns:
        The model.

    Raises:
        UntestedVersionError: transformers is of a release this was never tried with.
        ValueError: there is nothing in the model that we know how to replace.
    """
    require_version("transformers", TESTED_VERSIONS)
    restore(model)
    own_matchers = [module for module in model.modules() if type(module).__name__ in ASSIGNING]
    original = _loss_function(model)
    if original is None and not own_matchers:
        raise ValueError(
            f"{type(model).__name__} has none of the loss functions that are known: {', '.join(FAMILIES)}. "
            "Pass the model itself, before it is wrapped or compiled, and without a loss_function of its own"
        )
    if original is not None and (matcher or loss):
        model.loss_function = FastLoss(original, matcher=matcher, loss=loss)  # type: ignore[assignment]
    if matcher:
        for module in own_matchers:
            module.forward = OwnAssignment(module)
    if position_encoding:
        for module in model.modules():
            options = encoding_options(module)
            if options is not None:
                module.forward = FastEncoding(module, options)
    return model


def restore(model: Model) -> Model:
    """Undo :func:`accelerate`; a model that was never accelerated stays as it is."""
    if isinstance(model.__dict__.get("_loss_function"), FastLoss):
        del model.__dict__["_loss_function"]
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), (FastEncoding, OwnAssignment)):
            del module.__dict__["forward"]
    return model


def _loss_function(model: Any) -> Any:
    """The loss function of transformers that the model uses, None where we do not know it."""
    if getattr(model, "loss_type", None) is None:  # without one transformers takes that of language models
        return None
    found = model.loss_function
    return found if getattr(found, "__name__", None) in FAMILIES else None

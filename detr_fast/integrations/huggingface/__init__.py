"""The integration of Hugging Face transformers: one call before training, and one to undo it.

>>> accelerate(model)
>>> trainer.train()
>>> restore(model)
"""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

from torch import nn

from detr_fast.integrations.evidence import Finding, report
from detr_fast.integrations.huggingface.attention import attentions, replace_attention, restore_attention
from detr_fast.integrations.huggingface.comparisons import (
    find_assignment,
    find_attention,
    find_encoding,
    find_loss,
    find_matcher,
)
from detr_fast.integrations.huggingface.criteria import FAMILIES, FastLoss
from detr_fast.integrations.huggingface.position import FastEncoding, encoding_options
from detr_fast.integrations.huggingface.rebinding import MATCHER_MODULES, FastAssignment

__all__ = ["accelerate", "restore"]


Model = TypeVar("Model", bound=nn.Module)


def accelerate(
    model: Model,
    matcher: bool = True,
    loss: bool = True,
    position_encoding: bool = True,
    deformable_attention: bool = True,
    check: bool = True,
) -> Model:
    """Run a detector on the ops of this package; outputs, losses, gradients and matches do not change.

    The model is modified in place, and other instances are not affected. Its parameters, buffers, submodules,
    configuration, and the files that ``save_pretrained`` writes do not change. Call it before the model is wrapped or
    compiled, and with several processes in all of them. A second call replaces the selection of the first.

    A part is taken from any release of transformers that computes it as this package does. What is replaced is
    compared by its parameters and, once per process, by its results on small random inputs. Parts that differ are left
    to transformers, and a warning in the log names them with the difference.

    Args:
        model: A model for object detection or segmentation of a supported family, or any model with multi-scale
            deformable attention.
        matcher: Whether to match all layers of a step in one call. If the matching costs contain masks, only the
            assignment is computed by :func:`detr_fast.ops.linear_sum_assignment`.
        loss: Whether to compute the class and box losses of all layers in one call.
        position_encoding: Whether to compute the sine position encoding of the padding mask.
        deformable_attention: Whether to sample the values of multi-scale deformable attention by
            :func:`detr_fast.ops.multi_scale_deformable_attention`, in training and in inference.
        check: Whether to compare the parts; otherwise every part that exists is replaced.

    Returns:
        The model.

    Raises:
        ValueError: The model has no part that can be replaced.
    """
    restore(model)
    matchers = [module for module in model.modules() if type(module).__name__ in MATCHER_MODULES]
    loss_function = _loss_function(model)
    sampled = attentions(model) if deformable_attention else []
    if loss_function is None and not matchers and not sampled:
        raise ValueError(
            f"{type(model).__name__} has no multi-scale deformable attention and none of the supported loss functions: "
            f"{', '.join(FAMILIES)}. Pass the model before it is wrapped or compiled, and without a custom "
            "loss_function"
        )
    findings: list[Finding] = []

    def agrees(*found: Finding) -> bool:
        findings.extend(found)
        return found[0].reason is None

    for module, name in sampled:
        if not check or agrees(find_attention(type(module), name)):
            replace_attention(module, name)
    if loss_function is not None and (matcher or loss):
        fast = FastLoss(loss_function, matcher=matcher, loss=loss and fast_losses(loss_function))
        if check and fast.matcher:
            fast.matcher = agrees(find_matcher(loss_function, model.config))
        if check and fast.loss:
            found = find_loss(loss_function, model.config)
            fast.loss = agrees(*found)
            fast.cardinality = found[-1].reason is None
        if fast.matcher or fast.loss:
            model.loss_function = fast  # type: ignore[assignment]
    for module in matchers if matcher else []:
        if not check or agrees(find_assignment(module)):
            module.forward = FastAssignment(module)
    for module in model.modules() if position_encoding else []:
        try:
            options = encoding_options(module)
        except AttributeError as error:
            findings.append(Finding(f"the encoding of {type(module).__name__}", str(error)))
            continue
        if options is not None and (not check or agrees(find_encoding(module, options))):
            module.forward = FastEncoding(module, options)
    report("transformers", findings)
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


def fast_losses(function: Any) -> bool:
    """Return whether the losses of a loss function can be replaced, and not only its matching."""
    return FAMILIES[function.__name__].weights is not None


def _loss_function(model: Any) -> Any:
    """Return the loss function of the model; None if it is not supported."""
    if getattr(model, "loss_type", None) is None:  # transformers would use the loss of language models
        return None
    found = model.loss_function
    family = FAMILIES.get(getattr(found, "__name__", ""))
    return found if family is not None and family.criterion in inspect.unwrap(found).__globals__ else None

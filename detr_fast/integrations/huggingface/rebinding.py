"""Calling a function of another module with different bindings of some of its global names."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch import nn

from detr_fast import ops

MATCHER_MODULES = ("Mask2FormerHungarianMatcher", "MaskFormerHungarianMatcher")  # are submodules of the model


def rebind(function: Callable[..., Any], **names: Any) -> Callable[..., Any]:
    """Copy a function without its decorators and with other values of global names; its module does not change.

    Args:
        function: The function.
        **names: The values of global names.

    Raises:
        LookupError: The module of the function has no such name.
    """
    unwrapped = inspect.unwrap(function)
    assert isinstance(unwrapped, FunctionType)
    if missing := names.keys() - unwrapped.__globals__.keys():
        raise LookupError(f"{unwrapped.__module__} has no {sorted(missing)}")
    bound = FunctionType(
        unwrapped.__code__,
        {**unwrapped.__globals__, **names},
        unwrapped.__name__,
        unwrapped.__defaults__,
        unwrapped.__closure__,
    )
    bound.__kwdefaults__ = unwrapped.__kwdefaults__
    return bound


class FastAssignment:
    """Replaces the ``forward`` of a matcher: the matcher computes the costs, this package the assignment.

    Args:
        matcher: The matcher of transformers.
    """

    def __init__(self, matcher: nn.Module) -> None:
        self.matcher = matcher

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = rebind(type(self.matcher).forward, linear_sum_assignment=ops.linear_sum_assignment)
        return forward(self.matcher, *args, **kwargs)

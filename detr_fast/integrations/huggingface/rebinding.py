"""Run a function of someone else's module with other meanings for some of the names it looks up."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch import nn

from detr_fast import ops


def rebind(function: Callable[..., Any], **names: Any) -> Callable[..., Any]:
    """The function without its decorators, its module's global names replaced by ``names``; the module stays as it is.

    Raises:
        LookupError: the module has no such name.
    """
    original = inspect.unwrap(function)
    assert isinstance(original, FunctionType)
    if missing := names.keys() - original.__globals__.keys():
        raise LookupError(f"{original.__module__} has no {sorted(missing)}")
    bound = FunctionType(
        original.__code__,
        {**original.__globals__, **names},
        original.__name__,
        original.__defaults__,
        original.__closure__,
    )
    bound.__kwdefaults__ = original.__kwdefaults__
    return bound


class OwnAssignment:
    """The ``forward`` of a matcher whose costs stay its own, its assignments ours."""

    def __init__(self, matcher: nn.Module) -> None:
        self.matcher = matcher

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = rebind(type(self.matcher).forward, linear_sum_assignment=ops.linear_sum_assignment)
        return forward(self.matcher, *args, **kwargs)

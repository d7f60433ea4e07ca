"""Checks of arguments that are integers."""

from __future__ import annotations

import operator
from typing import Any


def as_integer(name: str, value: Any) -> int:
    """Return an integer of any type as an int.

    Raises:
        TypeError: ``value`` is no integer, such as 2.0.
    """
    if isinstance(value, int):
        return value
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None

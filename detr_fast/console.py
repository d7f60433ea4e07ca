"""What the command line does with warnings."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Log each warning as one line, without the line of code that issued it."""
    with warnings.catch_warnings():  # which restores showwarning
        warnings.showwarning = _log
        yield


def _log(message: Warning | str, *place: Any, **options: Any) -> None:
    logger.warning(" ".join(str(message).split()))

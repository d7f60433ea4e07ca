"""What stands for the Python objects beside the weights of a checkpoint, so that none of their code is executed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Inert:
    """An object that takes the arguments and the state of another one, and drops them."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# What facebookresearch/detr saves beside the weights, its arguments, and what MMEngine does, which has the classes and
# functions of the histories of losses and learning rates.
_NAMES = (
    "argparse.Namespace",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
    "__builtin__.getattr",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
)

# For torch.serialization.safe_globals.
INERT_GLOBALS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [(Inert, name) for name in _NAMES]

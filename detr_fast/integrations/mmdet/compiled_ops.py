"""The compiled ops of mmcv where they are not installed."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn


class MissingOps(ModuleType):
    """The compiled ops of mmcv where they are not installed: each exists, and raises RuntimeError when it is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> NoReturn:
            raise RuntimeError(f"mmcv-lite has no compiled op {name}; install mmcv, built for this release of torch")

        return missing


def declare_compiled_ops(name: str = "mmcv._ext") -> None:
    """Let mmcv-lite be imported: put :class:`MissingOps` in place of the extension if it is not installed."""
    if importlib.util.find_spec(name) is None:
        sys.modules[name] = MissingOps(name)
        sys.modules[name].__spec__ = ModuleSpec(name, None)

"""Triton kernels, one file per hot path, installed as ``detr_fast.kernels``.

The folder stands in the repository's root. From there Python also finds it under the name ``kernels``, which is
another project's; it then makes way for that one, or is an empty module that has no files, which transformers takes
for nothing installed.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec

import torch

LARGEST_PROBLEM = 4096  # queries or targets of an assignment: more do not fit into a program's registers

if __name__ == "kernels":
    import sys
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec
    from pathlib import Path

    _root = Path(__file__).resolve().parents[1]
    _spec = PathFinder.find_spec("kernels", [entry for entry in sys.path if Path(entry).resolve() != _root])
    if _spec is not None and _spec.loader is not None:
        sys.modules["kernels"] = module_from_spec(_spec)
        _spec.loader.exec_module(sys.modules["kernels"])
    __file__, __path__ = None, []  # type: ignore[assignment]  # so that nothing is imported from here by that name


def unavailable(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on ``device``, None where they can."""
    if not _installed():
        return "Triton is not installed (pip install triton)"
    if device.type == "cuda" or (device.type == "cpu" and _interpreted()):
        return None
    if device.type == "cpu":
        return "Triton needs a GPU; to run its interpreter, set TRITON_INTERPRET=1 before the first op runs"
    return "the kernels are written for CUDA devices"


def automatic(device: torch.device) -> bool:
    """Whether the kernels are worth choosing on ``device``: the interpreter is for tests."""
    return device.type == "cuda"


def launch_on(tensor: torch.Tensor) -> AbstractContextManager:
    """Make the device of ``tensor`` the one that kernels are launched on."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


@cache
def _interpreted() -> bool:
    # Kept as it first was: Triton decides when a kernel is defined, which is right after.
    return os.environ.get("TRITON_INTERPRET") == "1"

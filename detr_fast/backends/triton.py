"""Triton kernels, for CUDA devices: the functions of an op are in the file of its name in ``kernels/``."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch

_KERNELS = "detr_fast.kernels"


@cache
def has(op: str) -> bool:
    """Whether there is a kernel for the op; True if no kernels are installed, which :func:`unavailable` reports."""
    return not _is_installed(_KERNELS) or _is_installed(f"{_KERNELS}.{op}")


def unavailable(op: str, device: torch.device) -> str | None:
    """Return why Triton kernels cannot run on ``device``, None where they can."""
    if not _is_installed(_KERNELS):
        return "the kernels are not installed; install the package with pip (in a source tree: pip install -e .)"
    if not _is_installed("triton"):
        return "Triton is not installed (pip install triton)"
    if device.type == "cuda" or (device.type == "cpu" and _is_interpreted()):
        return None
    if device.type == "cpu":
        return "Triton needs a GPU; to run its interpreter, set TRITON_INTERPRET=1 before the first op runs"
    return "the kernels are written for CUDA devices"


def automatic(device: torch.device) -> bool:
    """Whether ``device`` is a GPU: Triton's interpreter, which also runs on the CPU, is for tests."""
    return device.type == "cuda"


def load(op: str) -> ModuleType:
    """Return the module of the op's kernels."""
    return import_module(f"{_KERNELS}.{op}")


@cache
def _is_installed(module: str) -> bool:
    return find_spec(module) is not None


@cache
def _is_interpreted() -> bool:
    # The first value counts: Triton reads the variable when a kernel is defined, which follows.
    return os.environ.get("TRITON_INTERPRET") == "1"

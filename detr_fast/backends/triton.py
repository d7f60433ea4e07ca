"""Triton kernels, for CUDA devices: the functions of an op are in the file of its name in ``kernels/``."""

from __future__ import annotations

import os
import warnings
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
    return _refusal(device)


def automatic(device: torch.device) -> bool:
    """Whether ``device`` is a GPU, with a warning where Triton cannot run on it; the interpreter is for tests."""
    if device.type != "cuda":
        return False
    if reason := _refusal(device):
        warnings.warn(f"detr_fast runs on slower backends: {reason}", RuntimeWarning, stacklevel=2)
    return True


def load(op: str) -> ModuleType:
    """Return the module of the op's kernels."""
    return import_module(f"{_KERNELS}.{op}")


def _refusal(device: torch.device) -> str | None:
    if not _is_installed(_KERNELS):
        return "the kernels are not installed; install the package with pip (in a source tree: pip install -e .)"
    if not _is_installed("triton"):
        return "Triton is not installed (pip install triton)"
    if device.type not in ("cpu", "cuda"):
        return "the kernels are written for CUDA devices"
    if _is_interpreted():
        return None
    if device.type == "cpu":
        return "Triton needs a GPU; to run its interpreter, set TRITON_INTERPRET=1 before the first op runs"
    return _driver_fault() if torch.cuda.is_available() else None


@cache
def _driver_fault() -> str | None:
    """Return why Triton cannot drive the GPU, None where it can; for that it compiles a C program on the host."""
    from triton.runtime import driver

    try:
        _ = driver.active.get_current_target
    except Exception as error:  # of many kinds: there is no C compiler, it fails, or libcuda is missing
        cause = " ".join(str(error).split()) or type(error).__name__
        return (
            f"Triton cannot drive the GPU ({cause}); beside NVIDIA's driver, it needs a C compiler such as gcc and the "
            "headers of Python (python3-dev)"
        )
    return None


@cache
def _is_installed(module: str) -> bool:
    return find_spec(module) is not None


@cache
def _is_interpreted() -> bool:
    # The first value counts: Triton reads the variable when a kernel is defined, which follows.
    return os.environ.get("TRITON_INTERPRET") == "1"

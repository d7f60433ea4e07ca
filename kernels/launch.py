"""What every launcher needs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton.language as tl


def launch_on(tensor: torch.Tensor) -> AbstractContextManager:
    """Make the device of ``tensor`` the one that kernels are launched on."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    """Return the type that a kernel computes in, for a result of ``dtype``: float64, or float32 for all others."""
    return tl.float64 if dtype == torch.float64 else tl.float32

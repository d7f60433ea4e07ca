"""Whether a call runs, or is only recorded."""

from __future__ import annotations

import torch
from torch import Tensor


def is_tracing(tensor: Tensor) -> bool:
    """Whether a call is recorded: under torch.compile, or on a tensor that dispatches, such as a fake one."""
    return torch.compiler.is_compiling() or type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__

"""Settings of PyTorch that depend on the device of a run."""

from __future__ import annotations

import torch


def fastest_memory_format(device: torch.device) -> torch.memory_format:
    """Return the memory format of convolutions that is fastest on a device.

    It is channels last for the tensor cores of a GPU; on a CPU, the networks of this library are slower with it.
    """
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def set_tf32(allowed: bool) -> None:
    """Set whether GPUs may round the factors of float32 matrix products and convolutions to TF32.

    PyTorch's own defaults differ: they allow it in convolutions only.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def tune_convolutions() -> None:
    """Let cuDNN measure which algorithm is fastest, once for each shape of a convolution; shapes have to be few."""
    torch.backends.cudnn.benchmark = True

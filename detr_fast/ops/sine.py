"""Sines and cosines of a geometric sequence of wavelengths, in plain PyTorch."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor


def check_wavelengths(num_feats: int, temperature: float) -> None:
    """Raise TypeError where ``temperature`` is no number, ValueError where an option is out of its range."""
    if num_feats < 2 or num_feats % 2:
        raise ValueError(
            f"num_feats is counted per axis, in pairs of sine and cosine; it must be even, got {num_feats}"
        )
    check_is_number("temperature", temperature)
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature is the base of the wavelengths; it must be finite and above 0, got {temperature}"
        )


def check_is_number(name: str, value: object) -> None:
    """Raise TypeError where ``value`` is no real number."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")


def encode(position: Tensor, num_feats: int, temperature: float, interleave: bool) -> Tensor:
    """Encode positions in radians [...,D] with F = ``num_feats`` features each: [...,D*F]."""
    pair = torch.arange(num_feats // 2, dtype=position.dtype, device=position.device)
    angle = position[..., None] / temperature ** (2 * pair / num_feats)  # [...,D,F/2]
    if interleave:
        return torch.stack((angle.sin(), angle.cos()), -1).flatten(-3)
    return torch.cat((angle.sin(), angle.cos()), -1).flatten(-2)

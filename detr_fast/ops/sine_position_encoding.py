"""Sine position encoding of a padding mask, as DETR and its descendants use it."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from detr_fast.ops.dispatch import register_op
from detr_fast.ops.sine import check_is_number, check_wavelengths, encode


def sine_position_encoding(
    mask: Tensor,
    num_feats: int = 128,
    *,
    temperature: float = 10000.0,
    normalize: bool = True,
    scale: float = 2 * math.pi,
    eps: float = 1e-6,
    offset: float = 0.0,
    dtype: torch.dtype = torch.float32,
    layout: Literal["bchw", "blc"] = "bchw",
    interleave: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Encode the row and column of each cell, counted over the valid cells, as sines and cosines.

    The formula is that of "Attention is all you need" (https://arxiv.org/abs/1706.03762, section 3.5), taken
    over two axes by DETR (https://arxiv.org/abs/2005.12872, appendix A.4).

    Args:
        mask: bool [B,H,W], True where a cell is padding.
        num_feats: features F per axis, even.
        temperature: base of the geometric sequence of wavelengths, above 0.
        normalize: map each axis of the valid area to ``[0, scale]``.
        scale: length of a normalised axis, in radians.
        eps: added to the divisor of the normalisation.
        offset: added to positions before they are normalised (-0.5 in Deformable DETR), or as they are
            where ``normalize`` is False. Positions count from 1.
        dtype: of the result; computed in float32, or in float64 where that is asked for.
        layout: ``"bchw"`` gives [B,2F,H,W], ``"blc"`` gives [B,H*W,2F].
        interleave: whether sine and cosine of a wavelength are neighbors; if not, an axis has all its sines first, as
            in RT-DETR, whose grid is ``normalize=False, offset=-1.0`` over a mask without padding.
        backend: a backend by name, or None for the fastest.

    Returns:
        [B,2F,H,W] or [B,H*W,2F], the F features of the row first.

    Raises:
        TypeError: ``temperature``, ``scale``, ``eps`` or ``offset`` is not a number.
        ValueError: the mask is not bool [B,H,W], or an option is out of its range.
        BackendError: the backend asked for cannot run here.
    """
    if mask.dim() != 3 or mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool [B,H,W], True = padding; got {mask.dtype} {list(mask.shape)}")
    check_wavelengths(num_feats, temperature)
    check_normalization(scale, eps, offset)
    if layout not in ("bchw", "blc"):
        raise ValueError(f"layout must be 'bchw' or 'blc', got {layout!r}")
    return _sine_position_encoding(
        mask, num_feats, temperature, normalize, scale, eps, offset, dtype, layout, interleave, backend=backend
    )


def check_normalization(scale: float, eps: float, offset: float) -> None:
    """Raise TypeError where an option of the normalization is no number."""
    for name, value in (("scale", scale), ("eps", eps), ("offset", offset)):
        check_is_number(name, value)


@register_op
def _sine_position_encoding(
    mask: Tensor,
    num_feats: int,
    temperature: float,
    normalize: bool,
    scale: float,
    eps: float,
    offset: float,
    dtype: torch.dtype,
    layout: str,
    interleave: bool,
) -> Tensor:
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    valid = ~mask
    y = valid.cumsum(1, dtype=compute)  # [B,H,W]
    x = valid.cumsum(2, dtype=compute)
    if normalize:
        y = (y + offset) / (y[:, -1:, :] + eps) * scale
        x = (x + offset) / (x[:, :, -1:] + eps) * scale
    else:
        y, x = y + offset, x + offset

    encoding = encode(torch.stack((y, x), -1), num_feats, temperature, interleave).to(dtype)  # [B,H,W,2F]
    return encoding.permute(0, 3, 1, 2).contiguous() if layout == "bchw" else encoding.flatten(1, 2)

"""Sine position encoding of a padding mask, as DETR and its descendants use it."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from detr_fast.ops.backends import Column, Functions, reference, triton


def sine_position_encoding(
    mask: Tensor,  # bool [B,H,W]
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
    """Encode each cell's row and column, counted over the valid cells, in sines and cosines.

    The formula is that of "Attention is all you need" (https://arxiv.org/abs/1706.03762, section 3.5), taken
    over two axes by DETR (https://arxiv.org/abs/2005.12872, appendix A.4).

    Args:
        mask: True where a cell is padding.
        num_feats: features F per axis, even.
        temperature: base of the geometric sequence of wavelengths.
        normalize: map each axis of the valid area to ``[0, scale]``.
        scale: length of a normalised axis, in radians.
        eps: added to the divisor of the normalisation.
        offset: added to positions before they are normalised (-0.5 in Deformable DETR), or as they are
            where ``normalize`` is off. Positions count from 1.
        dtype: of the result; computed in float32, or in float64 where that is asked for.
        layout: ``"bchw"`` gives [B,2F,H,W], ``"blc"`` gives [B,H*W,2F].
        interleave: sine and cosine of a wavelength side by side; without it an axis has all its sines first, as in
            RT-DETR, whose own grid is ``normalize=False, offset=-1.0`` over a mask without padding.
        backend: a backend by name, or None for the fastest.

    Raises:
        ValueError: the mask is not bool [B,H,W], or an option is out of its range.
        BackendError: the backend asked for cannot run here.
    """
    if mask.dim() != 3 or mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool [B,H,W], True = padding; got {mask.dtype} {list(mask.shape)}")
    if num_feats < 2 or num_feats % 2:
        raise ValueError(
            f"num_feats is counted per axis, in pairs of sine and cosine; it must be even, got {num_feats}"
        )
    if layout not in ("bchw", "blc"):
        raise ValueError(f"layout must be 'bchw' or 'blc', got {layout!r}")
    run = COLUMN.choose(mask.device, backend).load()["sine_position_encoding"]
    return run(
        mask,
        num_feats,
        temperature=temperature,
        normalize=normalize,
        scale=scale,
        eps=eps,
        offset=offset,
        dtype=dtype,
        layout=layout,
        interleave=interleave,
    )


def sine_position_encoding_reference(
    mask: Tensor,
    num_feats: int,
    *,
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

    pair = torch.arange(num_feats // 2, dtype=compute, device=mask.device)
    wavelength = temperature ** (2 * pair / num_feats)  # [F/2]

    def encode(position: Tensor) -> Tensor:  # [B,H,W] -> [B,H,W,F]
        angle = position[..., None] / wavelength
        if interleave:
            return torch.stack((angle.sin(), angle.cos()), -1).flatten(-2)
        return torch.cat((angle.sin(), angle.cos()), -1)

    encoding = torch.cat((encode(y), encode(x)), -1).to(dtype)  # [B,H,W,2F]
    return encoding.permute(0, 3, 1, 2).contiguous() if layout == "bchw" else encoding.flatten(1, 2)


def _load_triton() -> Functions:
    from detr_fast.kernels.sine_position_encoding import sine_position_encoding

    return {"sine_position_encoding": sine_position_encoding}


COLUMN = Column(
    "sine_position_encoding",
    [triton(_load_triton), reference({"sine_position_encoding": sine_position_encoding_reference})],
)

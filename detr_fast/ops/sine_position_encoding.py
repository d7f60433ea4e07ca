"""Sine position encoding of a padding mask or of given coordinates, as DETR and its descendants use it."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from detr_fast.ops.backends import Column, Functions, reference, triton
from detr_fast.ops.library import Op


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
        temperature: base of the geometric sequence of wavelengths, above 0.
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
    _check_wavelengths(num_feats, temperature)
    if layout not in ("bchw", "blc"):
        raise ValueError(f"layout must be 'bchw' or 'blc', got {layout!r}")
    return ENCODING(
        mask, num_feats, temperature, normalize, scale, eps, offset, dtype, layout, interleave, backend=backend
    )


def sine_coordinate_embedding(
    coordinates: Tensor,  # [...,D]
    num_feats: int = 128,
    *,
    temperature: float = 10000.0,
    scale: float = 2 * math.pi,
    order: Literal["yxwh", "xywh"] = "yxwh",
    backend: str | None = None,
) -> Tensor:  # [...,D*F]
    """Embed each coordinate in sines and cosines, such as the reference points and boxes of a decoder's queries.

    Feature 2k of a coordinate c is ``sin(c * scale / temperature ** (2k / num_feats))``, feature 2k + 1 its cosine:
    the formula of :func:`sine_position_encoding` at any place. Differentiable in the coordinates; backends other
    than the reference once only.

    Args:
        coordinates: floating point, D of them, x and y first: (x), (x, y) or (x, y, w, h), fractions of the image
            as a rule. Computed in float32, or in float64 where they are; the result has their dtype.
        num_feats: features F per coordinate, even.
        temperature: base of the geometric sequence of wavelengths, above 0.
        scale: radians per unit of the coordinates.
        order: of the coordinates' blocks in the result. ``"yxwh"`` puts y before x, as in Conditional DETR
            (https://arxiv.org/abs/2108.06152), DAB-DETR, DINO's decoder, and Grounding DINO; ``"xywh"`` keeps
            the order they have, as in Deformable DETR's two stages (https://arxiv.org/abs/2010.04159).
        backend: a backend by name, or None for the fastest.

    Raises:
        ValueError: the coordinates are not floating point [...,D], or an option is out of its range.
        BackendError: the backend asked for cannot run here.
    """
    if coordinates.dim() < 1 or coordinates.shape[-1] < 1 or not coordinates.is_floating_point():
        raise ValueError(
            f"coordinates must be floating point [...,D], got {coordinates.dtype} {list(coordinates.shape)}"
        )
    _check_wavelengths(num_feats, temperature)
    if order not in ("yxwh", "xywh"):
        raise ValueError(f"order must be 'yxwh' or 'xywh', got {order!r}")
    return EMBEDDING(coordinates, num_feats, temperature, scale, order, backend=backend)


def _check_wavelengths(num_feats: int, temperature: float) -> None:
    if num_feats < 2 or num_feats % 2:
        raise ValueError(
            f"num_feats is counted per axis, in pairs of sine and cosine; it must be even, got {num_feats}"
        )
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature is the base of the wavelengths; it must be finite and above 0, got {temperature}"
        )


def sine_position_encoding_reference(
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

    encoding = _encode(torch.stack((y, x), -1), num_feats, temperature, interleave).to(dtype)  # [B,H,W,2F]
    return encoding.permute(0, 3, 1, 2).contiguous() if layout == "bchw" else encoding.flatten(1, 2)


def sine_coordinate_embedding_reference(
    coordinates: Tensor, num_feats: int, temperature: float, scale: float, order: str
) -> Tensor:
    position = coordinates.to(torch.promote_types(coordinates.dtype, torch.float32)) * scale
    if order == "yxwh":
        position = torch.cat((position[..., :2].flip(-1), position[..., 2:]), -1)
    return _encode(position, num_feats, temperature, interleave=True).to(coordinates.dtype)


def _encode(position: Tensor, num_feats: int, temperature: float, interleave: bool) -> Tensor:  # [...,D] -> [...,D*F]
    pair = torch.arange(num_feats // 2, dtype=position.dtype, device=position.device)
    angle = position[..., None] / temperature ** (2 * pair / num_feats)  # [...,D,F/2]
    if interleave:
        return torch.stack((angle.sin(), angle.cos()), -1).flatten(-3)
    return torch.cat((angle.sin(), angle.cos()), -1).flatten(-2)


def _load_triton() -> Functions:
    from detr_fast.kernels import sine_coordinate_embedding, sine_position_encoding

    return {
        "sine_position_encoding": sine_position_encoding.sine_position_encoding,
        "sine_coordinate_embedding": sine_coordinate_embedding.sine_coordinate_embedding,
        "sine_coordinate_embedding_backward": sine_coordinate_embedding.sine_coordinate_embedding_backward,
    }


COLUMN = Column(
    "sine_position_encoding",
    [
        triton(_load_triton),
        reference(
            {
                "sine_position_encoding": sine_position_encoding_reference,
                "sine_coordinate_embedding": sine_coordinate_embedding_reference,
            }
        ),
    ],
)


def _fake_encoding(mask: Tensor, num_feats: int, *options: Any) -> Tensor:
    *_, dtype, layout, _ = options
    batch, height, width = mask.shape
    blc, bchw = (batch, height * width, 2 * num_feats), (batch, 2 * num_feats, height, width)
    return mask.new_empty(blc if layout == "blc" else bchw, dtype=dtype)


def _fake_embedding(coordinates: Tensor, num_feats: int, *options: Any) -> Tensor:
    return coordinates.new_empty((*coordinates.shape[:-1], coordinates.shape[-1] * num_feats))


ENCODING = Op(
    COLUMN,
    "sine_position_encoding",
    {
        "mask": "Tensor",
        "num_feats": "int",
        "temperature": "float",
        "normalize": "bool",
        "scale": "float",
        "eps": "float",
        "offset": "float",
        "dtype": "ScalarType",
        "layout": "str",
        "interleave": "bool",
    },
    "Tensor",
    _fake_encoding,
)
EMBEDDING = Op(
    COLUMN,
    "sine_coordinate_embedding",
    {"coordinates": "Tensor", "num_feats": "int", "temperature": "float", "scale": "float", "order": "str"},
    "Tensor",
    _fake_embedding,
    differentiable=1,
)

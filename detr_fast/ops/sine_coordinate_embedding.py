"""Sine embedding of coordinates, as the decoders of DETR's descendants use it."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from detr_fast.ops.custom_op import Differentiable
from detr_fast.ops.dispatch import register_op
from detr_fast.ops.sine import check_is_number, check_wavelengths, encode


def sine_coordinate_embedding(
    coordinates: Tensor,
    num_feats: int = 128,
    *,
    temperature: float = 10000.0,
    scale: float = 2 * math.pi,
    order: Literal["yxwh", "xywh"] = "yxwh",
    backend: str | None = None,
) -> Tensor:
    """Embed coordinates as sines and cosines, such as the reference points and boxes of a decoder's queries.

    Feature 2k of a coordinate c is ``sin(c * scale / temperature ** (2k / num_feats))``, feature 2k + 1 its cosine:
    the formula of :func:`sine_position_encoding` at any position. Differentiable in the coordinates; twice only with
    the reference.

    Args:
        coordinates: floating point [...,D], x and y first: (x), (x, y) or (x, y, w, h), fractions of the image
            as a rule. Computed in float32, or in float64 where they are; the result has their dtype.
        num_feats: features F per coordinate, even.
        temperature: base of the geometric sequence of wavelengths, above 0.
        scale: radians per unit of the coordinates.
        order: of the coordinates' blocks in the result. ``"yxwh"`` puts y before x, as in Conditional DETR
            (https://arxiv.org/abs/2108.06152), DAB-DETR, DINO's decoder, and Grounding DINO; ``"xywh"`` keeps
            the order they have, as in Deformable DETR's two stages (https://arxiv.org/abs/2010.04159).
        backend: a backend by name, or None for the fastest.

    Returns:
        [...,D*F].

    Raises:
        TypeError: ``temperature`` or ``scale`` is not a number.
        ValueError: the coordinates are not floating point [...,D], or an option is out of its range.
        BackendError: the backend asked for cannot run here.
    """
    if coordinates.dim() < 1 or coordinates.shape[-1] < 1 or not coordinates.is_floating_point():
        raise ValueError(
            f"coordinates must be floating point [...,D], got {coordinates.dtype} {list(coordinates.shape)}"
        )
    check_wavelengths(num_feats, temperature)
    check_is_number("scale", scale)
    if order not in ("yxwh", "xywh"):
        raise ValueError(f"order must be 'yxwh' or 'xywh', got {order!r}")
    return _sine_coordinate_embedding(coordinates, num_feats, temperature, scale, order, backend=backend)


@register_op
def _sine_coordinate_embedding(
    coordinates: Differentiable, num_feats: int, temperature: float, scale: float, order: str
) -> Tensor:
    position = coordinates.to(torch.promote_types(coordinates.dtype, torch.float32)) * scale
    if order == "yxwh":
        position = torch.cat((position[..., :2].flip(-1), position[..., 2:]), -1)
    return encode(position, num_feats, temperature, interleave=True).to(coordinates.dtype)

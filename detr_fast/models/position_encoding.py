"""Position encodings of the cells of a feature map, in row-major order: [B,H*W,2F]."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from detr_fast import ops
from detr_fast.ops.sine import check_wavelengths
from detr_fast.ops.sine_position_encoding import check_normalization


class SinePositionEncoding(nn.Module):
    """Fixed sine and cosine encoding of positions in the unpadded part of the feature map.

    The arguments are those of :func:`detr_fast.ops.sine_position_encoding`. MMDetection's module of this kind does not
    normalize by default.

    Args:
        num_feats: Number of features F per axis, even.
        temperature: Base of the geometric sequence of wavelengths.
        normalize: Whether each axis of the unpadded part is mapped to ``[0, scale]``.
        scale: Length of a normalized axis, in radians.
        eps: Added to the divisor of the normalization.
        offset: Added to positions before they are normalized.

    Raises:
        TypeError: ``temperature``, ``scale``, ``eps`` or ``offset`` is not a number.
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        num_feats: int,
        *,
        temperature: float = 10000.0,
        normalize: bool = True,
        scale: float = 2 * math.pi,
        eps: float = 1e-6,
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        check_wavelengths(num_feats, temperature)
        check_normalization(scale, eps, offset)
        self.num_feats = num_feats
        self.temperature = temperature
        self.normalize = normalize
        self.scale = scale
        self.eps = eps
        self.offset = offset

    def extra_repr(self) -> str:
        """Return the arguments."""
        return (
            f"num_feats={self.num_feats}, temperature={self.temperature}, normalize={self.normalize}, "
            f"scale={self.scale}, eps={self.eps}, offset={self.offset}"
        )

    def forward(self, mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Encode the cells of a feature map.

        Args:
            mask: Padding mask, bool [B,H,W], True where padded.
            dtype: Dtype of the encoding.

        Returns:
            The encoding [B,H*W,2F].
        """
        return ops.sine_position_encoding(
            mask,
            self.num_feats,
            temperature=self.temperature,
            normalize=self.normalize,
            scale=self.scale,
            eps=self.eps,
            offset=self.offset,
            dtype=dtype,
            layout="blc",
        )


class LearnedPositionEncoding(nn.Module):
    """Learned encoding: a vector per column and a vector per row of the padded feature map.

    Args:
        num_feats: Number of features F per axis.
    """

    max_side = 50

    def __init__(self, num_feats: int) -> None:
        super().__init__()
        self.row_embed = nn.Embedding(self.max_side, num_feats)
        self.col_embed = nn.Embedding(self.max_side, num_feats)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Encode the cells of a feature map.

        Args:
            mask: Padding mask, bool [B,H,W], of which only the shape is used.
            dtype: Dtype of the encoding.

        Returns:
            The encoding [B,H*W,2F], the features of the column first.

        Raises:
            ValueError: The feature map has more than 50 rows or columns.
        """
        batch, height, width = mask.shape
        if max(height, width) > self.max_side:
            raise ValueError(
                f"the learned position encoding has {self.max_side} rows and columns, but the feature map is "
                f'{height}x{width}; use smaller images or position_encoding="sine"'
            )
        columns = self.col_embed.weight[:width].expand(height, width, -1)
        rows = self.row_embed.weight[:height, None].expand(height, width, -1)
        return torch.cat((columns, rows), -1).to(dtype).flatten(0, 1).expand(batch, -1, -1)

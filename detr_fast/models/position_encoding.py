"""Position encodings of a feature map, as the transformer takes them: [B,H*W,2F], the map's rows one after another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detr_fast import ops


class SinePositionEncoding(nn.Module):
    """Fixed encoding in sines and cosines over the part of the map that is not padding.

    Args:
        num_feats: features F per axis, even.
    """

    def __init__(self, num_feats: int) -> None:
        super().__init__()
        self.num_feats = num_feats

    def forward(self, mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Encode a padding mask, bool [B,H,W], True = padding -> [B,H*W,2F]."""
        return ops.sine_position_encoding(mask, self.num_feats, dtype=dtype, layout="blc")


class LearnedPositionEncoding(nn.Module):
    """One learned vector per column and one per row, counted from the map's top left corner, padding included.

    Args:
        num_feats: features F per axis.
    """

    max_side = 50

    def __init__(self, num_feats: int) -> None:
        super().__init__()
        self.row_embed = nn.Embedding(self.max_side, num_feats)
        self.col_embed = nn.Embedding(self.max_side, num_feats)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Encode the cells of a map with this padding mask, bool [B,H,W] -> [B,H*W,2F], columns' features first.

        Raises:
            ValueError: the map is larger than 50 cells along an axis.
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

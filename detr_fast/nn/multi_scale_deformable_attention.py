"""Multi-scale deformable attention as a module."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detr_fast import ops


class MultiScaleDeformableAttention(nn.Module):
    """Multi-scale deformable attention with its projections (https://arxiv.org/abs/2010.04159, section 4.1).

    The parameters have the names and shapes of Deformable DETR's reference code, whose checkpoints load, as do those
    of its descendants that kept them, such as DINO, RT-DETR, LW-DETR and Grounding DINO.

    Args:
        embed_dim: number of channels E of queries, features and output; a multiple of ``num_heads``.
        num_heads: number of heads H.
        num_levels: number of levels L.
        num_points: number of points that a head samples from each level, one number or L of them.
        offset_scale: as in :func:`detr_fast.ops.fused_deformable_attention`.

    Raises:
        ValueError: ``embed_dim`` is not a multiple of ``num_heads``, or ``num_points`` are not L numbers.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int | Sequence[int] = 4,
        *,
        offset_scale: float = 0.5,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim must be a multiple of num_heads, got {embed_dim} and {num_heads}")
        self.points_per_level = [num_points] * num_levels if isinstance(num_points, int) else list(num_points)
        if len(self.points_per_level) != num_levels:
            raise ValueError(f"num_points must be a number or {num_levels} numbers, got {num_points}")
        self.embed_dim, self.num_heads, self.offset_scale = embed_dim, num_heads, offset_scale
        all_points = num_heads * sum(self.points_per_level)
        self.sampling_offsets = nn.Linear(embed_dim, all_points * 2)
        self.attention_weights = nn.Linear(embed_dim, all_points)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the parameters: each head samples in one direction, point k at a distance of k cells."""
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack((angle.cos(), angle.sin()), -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.cat([torch.arange(1.0, count + 1) for count in self.points_per_level])
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((direction[:, None] * distance[:, None]).flatten())
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        features: Tensor,
        spatial_shapes: Sequence[Sequence[int]] | Tensor,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend to the features of all levels.

        Args:
            query: [B,Q,E], with the position embedding added.
            reference_points: [B,Q,L,2] or [B,Q,L,4], points or boxes cxcywh in fractions of each level; [B,Q,1,2] or
                [B,Q,1,4] for the same in all levels.
            features: [B,S,E], the features of all levels, level by level and row by row.
            spatial_shapes: (height, width) of each level, a sequence or an int64 tensor [L,2]; a tensor on a device
                is not read by the host.
            padding_mask: bool [B,S], True for features that are padding and count as zero; None: there are none.

        Returns:
            [B,Q,E].
        """
        value = self.value_proj(features)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0.0)
        points = (*query.shape[:2], self.num_heads, sum(self.points_per_level))
        output = ops.fused_deformable_attention(
            value.unflatten(-1, (self.num_heads, -1)),
            spatial_shapes,
            reference_points,
            self.sampling_offsets(query).view(*points, 2),
            self.attention_weights(query).view(points),
            points_per_level=self.points_per_level,
            offset_scale=self.offset_scale,
        )
        return self.output_proj(output)

    def extra_repr(self) -> str:
        """Return what the projections do not show."""
        return f"num_heads={self.num_heads}, points_per_level={self.points_per_level}"

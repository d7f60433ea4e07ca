"""The multi-scale deformable attention of RF-DETR."""

from __future__ import annotations

from copy import deepcopy

import torch
from rfdetr.models.ops.modules import MSDeformAttn
from torch import Tensor

from detr_fast import ops
from detr_fast.integrations.evidence import (
    SHAPES,
    Finding,
    check_attentions,
    check_parameters,
    examine,
    parameter_names,
    randomize_sampling,
)
from detr_fast.integrations.rfdetr.outputs import given


class FastAttention(MSDeformAttn):
    """The multi-scale deformable attention of RF-DETR, without sampling locations and weights in memory."""

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Tensor,
        input_level_start_index: Tensor,
        input_padding_mask: Tensor | None = None,
        input_spatial_shapes_hw: list[tuple[int, int]] | None = None,
    ) -> Tensor:
        """Attend to the features of all levels.

        Args:
            query: [B,Q,E].
            reference_points: [B,Q,L,2] or [B,Q,L,4], points or boxes cxcywh in [0,1]; [B,Q,1,2] or [B,Q,1,4] for the
                same in all levels.
            input_flatten: [B,S,E], the features of all levels.
            input_spatial_shapes: int64 [L,2], height and width of each level.
            input_level_start_index: Not used.
            input_padding_mask: bool [B,S], True for features that are padding; None without padding.
            input_spatial_shapes_hw: Height and width of each level as numbers; None if they are in the tensor only.

        Returns:
            [B,Q,E].
        """
        if getattr(self, "_export", False):
            return super().forward(
                query,
                reference_points,
                input_flatten,
                input_spatial_shapes,
                input_level_start_index,
                input_padding_mask,
                *given(input_spatial_shapes_hw),
            )
        value = self.value_proj(input_flatten)
        if input_padding_mask is not None:
            value = value.masked_fill(input_padding_mask[..., None], 0.0)
        points = (*query.shape[:2], self.n_heads, self.n_levels, self.n_points)
        output = ops.fused_deformable_attention(
            value.unflatten(-1, (self.n_heads, -1)),
            input_spatial_shapes if input_spatial_shapes_hw is None else input_spatial_shapes_hw,
            reference_points,
            self.sampling_offsets(query).view(*points, 2),
            self.attention_weights(query).view(points),
        )
        return self.output_proj(output)


def find_attention() -> Finding:
    """Compare the multi-scale deformable attention of RF-DETR with its replacement."""
    return examine("the attention", _compare_attention, ("attention", MSDeformAttn.forward))


def _compare_attention() -> None:
    check_parameters(MSDeformAttn.forward, parameter_names(FastAttention.forward))
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    host = MSDeformAttn(16, len(SHAPES), 2, 3)
    randomize_sampling(host)
    fast = deepcopy(host)
    fast.__class__ = FastAttention
    size = sum(height * width for height, width in SHAPES)
    given = {
        "input_spatial_shapes": torch.tensor(SHAPES),
        "input_level_start_index": torch.tensor([0, SHAPES[0][0] * SHAPES[0][1]]),
        "input_padding_mask": torch.rand(2, size, generator=generator) > 0.8,
    }
    for coordinates in (2, 4):
        leaves = {
            "query": torch.randn(2, 5, 16, generator=generator),
            "reference_points": torch.rand(2, 5, len(SHAPES), coordinates, generator=generator),
            "input_flatten": torch.randn(2, size, 16, generator=generator),
        }
        for leaf in leaves.values():
            leaf.requires_grad_()
        check_attentions(fast, host, leaves | given, leaves)

"""The positional encoding of MMDetection and the multi-scale deformable attention of mmcv."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.layers import SinePositionalEncoding
from mmdet.registry import MODELS
from torch import Tensor

from detr_fast import ops
from detr_fast.integrations.evidence import (
    SHAPES,
    Finding,
    check_attentions,
    check_close,
    check_parameters,
    examine,
    parameter_names,
    randomize_sampling,
)
from detr_fast.integrations.mmdet.comparisons import identity, keep_or_leave, with_class


@MODELS.register_module()
class FastSinePositionalEncoding(SinePositionalEncoding):
    """The sine positional encoding of MMDetection."""

    def __init__(self, *args: Any, check: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if check:
            keep_or_leave(self, FastSinePositionalEncoding, find_encoding(self))

    def forward(self, mask: Tensor | None, input: Tensor | None = None) -> Tensor:
        """Encode the cells of a feature map.

        Args:
            mask: Padding mask [B,H,W], nonzero where padded; None without padding.
            input: Feature map [B,d,H,W], of which only the shape and the device are used; needed if there is no mask.

        Returns:
            The encoding [B,2F,H,W].
        """
        batch = 1
        if mask is None:
            assert input is not None
            batch = input.shape[0]
            mask = torch.zeros(1, *input.shape[-2:], dtype=torch.bool, device=input.device)
        encoding = ops.sine_position_encoding(
            mask.bool(),
            self.num_feats,
            temperature=self.temperature,
            normalize=self.normalize,
            scale=self.scale,
            eps=self.eps,
            offset=self.offset if self.normalize else 0.0,
        )
        return encoding.expand(batch, -1, -1, -1) if batch > 1 else encoding


def find_encoding(encoding: SinePositionalEncoding) -> Finding:
    """Compare a positional encoding with that of MMDetection."""
    return examine(
        "the positional encoding",
        partial(_compare_encodings, encoding),
        ("encoding", SinePositionalEncoding.forward, identity(encoding)),
    )


def _compare_encodings(encoding: SinePositionalEncoding) -> None:
    names = parameter_names(SinePositionalEncoding.forward)
    check_parameters(SinePositionalEncoding.forward, parameter_names(FastSinePositionalEncoding.forward))
    host, fast = (with_class(encoding, of) for of in (SinePositionalEncoding, FastSinePositionalEncoding))
    mask = torch.zeros(2, 6, 7)
    mask[1, -2:] = 1
    mask[1, :, -3:] = 1
    cases: list[tuple[Any, ...]] = [(mask,)]
    if "input" in names:
        cases.append((None, torch.zeros(2, 4, 6, 7)))
    for given in cases:
        check_close({"the encoding": fast(*given)}, {"the encoding": host(*given)})


@MODELS.register_module()
class FastMultiScaleDeformableAttention(MultiScaleDeformableAttention):
    """The multi-scale deformable attention of mmcv, without compiled ops of mmcv and on any device."""

    def __init__(self, *args: Any, check: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if check:
            keep_or_leave(self, FastMultiScaleDeformableAttention, find_attention(self))

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        level_start_index: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Attend to the values of all levels; axes 0 and 1 of query, value and result swap without ``batch_first``.

        Args:
            query: [B,Q,E].
            key: Not used.
            value: [B,S,E], the features of all levels; None for those of the query.
            identity: [B,Q,E], added to the result; None for the query.
            query_pos: [B,Q,E], added to the query before it is projected; None for zero.
            key_padding_mask: [B,S], True for values that are padding; None without padding.
            reference_points: [B,Q,L,2] or [B,Q,L,4], points or boxes cxcywh in [0,1].
            spatial_shapes: int64 [L,2], height and width of each level.
            level_start_index: Not used.
            **kwargs: Not used.

        Returns:
            [B,Q,E].
        """
        assert reference_points is not None
        assert spatial_shapes is not None
        value = query if value is None else value
        identity = query if identity is None else identity
        query = query if query_pos is None else query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        value = self.value_proj(value)
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None].bool(), 0.0)
        points = (*query.shape[:2], self.num_heads, self.num_levels, self.num_points)
        output = ops.fused_deformable_attention(
            value.unflatten(-1, (self.num_heads, -1)),
            spatial_shapes,
            reference_points,
            self.sampling_offsets(query).view(*points, 2),
            self.attention_weights(query).view(points),
        )
        output = self.output_proj(output)
        return self.dropout(output if self.batch_first else output.transpose(0, 1)) + identity


def find_attention(attention: MultiScaleDeformableAttention) -> Finding:
    """Compare the multi-scale deformable attention of mmcv with its replacement."""
    return examine(
        "the multi-scale deformable attention",
        partial(_compare_attentions, attention.batch_first),
        ("attention", MultiScaleDeformableAttention.forward, attention.batch_first),
    )


def _compare_attentions(batch_first: bool) -> None:
    check_parameters(MultiScaleDeformableAttention.forward, parameter_names(FastMultiScaleDeformableAttention.forward))
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    host = MultiScaleDeformableAttention(16, 2, len(SHAPES), 3, batch_first=batch_first, dropout=0.0)
    randomize_sampling(host)
    fast = with_class(host, FastMultiScaleDeformableAttention)
    size = sum(height * width for height, width in SHAPES)
    shapes, starts = torch.tensor(SHAPES), torch.tensor([0, SHAPES[0][0] * SHAPES[0][1]])
    padding = torch.rand(2, size, generator=generator) > 0.8
    for coordinates in (2, 4):
        leaves = {
            "query": torch.randn(2, 5, 16, generator=generator),
            "value": torch.randn(2, size, 16, generator=generator),
            "query_pos": torch.randn(2, 5, 16, generator=generator),
            "reference_points": torch.rand(2, 5, len(SHAPES), coordinates, generator=generator),
        }
        for leaf in leaves.values():
            leaf.requires_grad_()
        given = dict(leaves)
        if not batch_first:
            given |= {name: given[name].transpose(0, 1) for name in ("query", "value", "query_pos")}
        given |= {"spatial_shapes": shapes, "level_start_index": starts, "key_padding_mask": padding}
        check_attentions(fast, host, given, leaves)

"""DETR's transformer: encoder and decoder, positions added to queries and keys at every layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention with the parameter names of ``nn.MultiheadAttention``.

    Args:
        dim: width of queries, keys and values, divisible by ``num_heads``.
        num_heads: number of heads.
        dropout: probability of dropping an attention weight while training.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))  # query, key and value, one below the other
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,  # [B,Q,d]
        key: Tensor,  # [B,S,d]
        value: Tensor,  # [B,S,d]
        padding: Tensor | None = None,  # bool [B,S], True = ignore this key
    ) -> Tensor:  # [B,Q,d]
        q, k, v = (self._split_heads(x) for x in self._project(query, key, value))
        attended = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if padding is None else ~padding[:, None, None, :],  # here True = attend
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dim = query.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if query is key:
            q, k = F.linear(query, weight[: 2 * dim], bias[: 2 * dim]).chunk(2, -1)
        else:
            q = F.linear(query, weight[:dim], bias[:dim])
            k = F.linear(key, weight[dim : 2 * dim], bias[dim : 2 * dim])
        return q, k, F.linear(value, weight[2 * dim :], bias[2 * dim :])

    def _split_heads(self, x: Tensor) -> Tensor:  # [B,N,d] -> [B,heads,N,d/heads]
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class TransformerLayer(nn.Module):
    """What encoder and decoder layers share: self-attention, feed-forward network and the residual connections."""

    def __init__(self, dim: int, num_heads: int, dim_feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attn = Attention(dim, num_heads, dropout)
        self.linear1 = nn.Linear(dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def residual(self, x: Tensor, norm: nn.Module, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre_norm:
            return x + self.dropout(sublayer(norm(x)))
        return norm(x + self.dropout(sublayer(x)))

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(F.relu(self.linear1(x))))


class EncoderLayer(TransformerLayer):
    def forward(
        self,
        x: Tensor,  # [B,S,d]
        position: Tensor,  # [B,S,d]
        padding: Tensor | None,  # bool [B,S]
    ) -> Tensor:  # [B,S,d]
        def self_attention(y: Tensor) -> Tensor:
            placed = y + position
            return self.self_attn(placed, placed, y, padding)

        x = self.residual(x, self.norm1, self_attention)
        return self.residual(x, self.norm2, self.feed_forward)


class DecoderLayer(TransformerLayer):
    def __init__(self, dim: int, num_heads: int, dim_feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__(dim, num_heads, dim_feedforward, dropout, pre_norm)
        self.multihead_attn = Attention(dim, num_heads, dropout)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self,
        x: Tensor,  # [B,Q,d]
        query_position: Tensor,  # [Q,d]
        memory: Tensor,  # [B,S,d]
        memory_key: Tensor,  # [B,S,d], the memory with its positions
        padding: Tensor | None,  # bool [B,S]
    ) -> Tensor:  # [B,Q,d]
        def self_attention(y: Tensor) -> Tensor:
            placed = y + query_position
            return self.self_attn(placed, placed, y)

        def cross_attention(y: Tensor) -> Tensor:
            return self.multihead_attn(y + query_position, memory_key, memory, padding)

        x = self.residual(x, self.norm1, self_attention)
        x = self.residual(x, self.norm2, cross_attention)
        return self.residual(x, self.norm3, self.feed_forward)


class Encoder(nn.Module):
    """A stack of encoder layers; only pre-norm layers leave an output that needs a norm of its own."""

    def __init__(self, layers: list[EncoderLayer], norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(self, x: Tensor, position: Tensor, padding: Tensor | None) -> Tensor:  # [B,S,d] -> [B,S,d]
        for layer in self.layers:
            x = layer(x, position, padding)
        return self.norm(x)


class Decoder(nn.Module):
    """A stack of decoder layers that returns every layer's output, normalised: [L,B,Q,d]."""

    def __init__(self, layers: list[DecoderLayer], norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(
        self,
        query_position: Tensor,  # [Q,d]
        memory: Tensor,  # [B,S,d]
        position: Tensor,  # [B,S,d]
        padding: Tensor | None,  # bool [B,S]
    ) -> Tensor:  # [L,B,Q,d]
        memory_key = memory + position
        x = torch.zeros_like(query_position).expand(memory.shape[0], -1, -1)  # [B,Q,d]
        outputs = []
        for layer in self.layers:
            x = layer(x, query_position, memory, memory_key, padding)
            outputs.append(x)
        return self.norm(torch.stack(outputs))


class Transformer(nn.Module):
    """Encoder and decoder of DETR (https://arxiv.org/abs/2005.12872, appendix A.3), batch first.

    Args:
        dim: width d of the model, divisible by ``num_heads``.
        num_heads: heads of every attention.
        num_encoder_layers: may be 0.
        num_decoder_layers: L.
        dim_feedforward: width of the feed-forward networks.
        dropout: probability in attention weights, feed-forward networks and residual connections.
        pre_norm: normalise before each sublayer instead of after its residual connection.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_encoder_layers: int,
        num_decoder_layers: int,
        dim_feedforward: int,
        dropout: float,
        pre_norm: bool,
    ) -> None:
        super().__init__()
        shape = (dim, num_heads, dim_feedforward, dropout, pre_norm)
        self.encoder = Encoder(
            [EncoderLayer(*shape) for _ in range(num_encoder_layers)],
            nn.LayerNorm(dim) if pre_norm else nn.Identity(),
        )
        self.decoder = Decoder([DecoderLayer(*shape) for _ in range(num_decoder_layers)], nn.LayerNorm(dim))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self,
        features: Tensor,  # [B,S,d]
        position: Tensor,  # [B,S,d], or [1,S,d] for all images
        query_position: Tensor,  # [Q,d]
        padding: Tensor | None = None,  # bool [B,S], True = padding
    ) -> Tensor:  # [L,B,Q,d]
        memory = self.encoder(features, position, padding)
        return self.decoder(query_position, memory, position, padding)

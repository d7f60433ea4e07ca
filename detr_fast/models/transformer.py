"""The transformer of DETR: position encodings are added to the queries and keys of each attention."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr_fast.nn.feed_forward import ACTIVATIONS


class Attention(nn.Module):
    """Multi-head attention with the parameter names of ``nn.MultiheadAttention``.

    Args:
        dim: Number of features d of queries, keys and values, divisible by ``num_heads``.
        num_heads: Number of heads.
        dropout: Dropout probability of the attention weights.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))  # of query, key and value, concatenated
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None = None) -> Tensor:
        """Attend to the keys.

        Args:
            query: Queries [B,Q,d].
            key: Keys [B,S,d].
            value: Values [B,S,d].
            padding: Padding mask of the keys, bool [B,S], True where a key is ignored.

        Returns:
            The attention output [B,Q,d].
        """
        q, k, v = (self._split_heads(x) for x in self._project(query, key, value))
        attended = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if padding is None else ~padding[:, None, None, :],  # True where a key is attended to
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the attention weights [B,heads,Q,S] of queries [B,Q,d] for keys [B,S,d] without padding."""
        q, k, _ = (self._split_heads(x) for x in self._project(query, key, key))
        return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)

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
    """The common part of encoder and decoder layers: self-attention, feed-forward network and residual connections.

    Args:
        dim: Number of features d, divisible by ``num_heads``.
        num_heads: Number of attention heads.
        dim_feedforward: Number of hidden features of the feed-forward network.
        dropout: Dropout probability of attention weights, hidden features and sublayer outputs.
        pre_norm: Whether a sublayer normalizes its input instead of the sum with its output.
        activation: A name in ``ACTIVATIONS``, of the function between the layers of the feed-forward network.
        num_ffn_layers: Number of linear layers of the feed-forward network, ``linear1``, ``linear2`` and so on.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        dim_feedforward: int,
        dropout: float,
        pre_norm: bool,
        activation: str = "relu",
        num_ffn_layers: int = 2,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.activation = activation
        self.num_ffn_layers = num_ffn_layers
        self.self_attn = Attention(dim, num_heads, dropout)
        widths = [dim, *[dim_feedforward] * (num_ffn_layers - 1), dim]
        for number, pair in enumerate(pairwise(widths), 1):
            self.add_module(f"linear{number}", nn.Linear(*pair))
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def residual(self, x: Tensor, norm: nn.Module, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply a sublayer [B,N,d] -> [B,N,d] with its residual connection, dropout and normalization."""
        if self.pre_norm:
            return x + self.dropout(sublayer(norm(x)))
        return norm(x + self.dropout(sublayer(x)))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Apply the feed-forward network to features [B,N,d]."""
        activate = ACTIVATIONS[self.activation]
        for number in range(1, self.num_ffn_layers):
            x = self.dropout(activate(getattr(self, f"linear{number}")(x)))
        return getattr(self, f"linear{self.num_ffn_layers}")(x)


class EncoderLayer(TransformerLayer):
    """A layer of the encoder: self-attention of the image features and a feed-forward network.

    The arguments are those of :class:`TransformerLayer`.
    """

    def forward(self, x: Tensor, position: Tensor, padding: Tensor | None) -> Tensor:
        """Apply the layer.

        Args:
            x: Image features [B,S,d].
            position: Position encoding [B,S,d].
            padding: Padding mask, bool [B,S], True where padded; None without padding.

        Returns:
            Features [B,S,d].
        """

        def self_attention(y: Tensor) -> Tensor:
            positioned = y + position
            return self.self_attn(positioned, positioned, y, padding)

        x = self.residual(x, self.norm1, self_attention)
        return self.residual(x, self.norm2, self.feed_forward)


class DecoderLayer(TransformerLayer):
    """A layer of the decoder: self-attention of the queries, cross-attention to the memory, a feed-forward network.

    The arguments are those of :class:`TransformerLayer`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        dim_feedforward: int,
        dropout: float,
        pre_norm: bool,
        activation: str = "relu",
        num_ffn_layers: int = 2,
    ) -> None:
        super().__init__(dim, num_heads, dim_feedforward, dropout, pre_norm, activation, num_ffn_layers)
        self.multihead_attn = Attention(dim, num_heads, dropout)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, query_position: Tensor, memory: Tensor, memory_key: Tensor, padding: Tensor | None
    ) -> Tensor:
        """Apply the layer.

        Args:
            x: Query features [B,Q,d].
            query_position: Learned position encoding of the queries [Q,d].
            memory: Output of the encoder [B,S,d].
            memory_key: Output of the encoder with its position encoding added [B,S,d].
            padding: Padding mask of the memory, bool [B,S], True where padded; None without padding.

        Returns:
            Query features [B,Q,d].
        """

        def self_attention(y: Tensor) -> Tensor:
            positioned = y + query_position
            return self.self_attn(positioned, positioned, y)

        def cross_attention(y: Tensor) -> Tensor:
            return self.multihead_attn(y + query_position, memory_key, memory, padding)

        x = self.residual(x, self.norm1, self_attention)
        x = self.residual(x, self.norm2, cross_attention)
        return self.residual(x, self.norm3, self.feed_forward)


class Encoder(nn.Module):
    """A stack of encoder layers.

    Args:
        layers: The layers.
        norm: Normalization of the output; ``nn.Identity`` unless the layers have ``pre_norm``.
    """

    def __init__(self, layers: list[EncoderLayer], norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(self, x: Tensor, position: Tensor, padding: Tensor | None) -> Tensor:
        """Encode image features; the arguments and the result are those of :meth:`EncoderLayer.forward`."""
        for layer in self.layers:
            x = layer(x, position, padding)
        return self.norm(x)


class Decoder(nn.Module):
    """A stack of decoder layers that returns the normalized output of each layer.

    Args:
        layers: The layers.
        norm: Normalization of the outputs.
        norm_between_layers: Whether the input of each layer after the first is normalized, too. The output of the last
            layer is then normalized twice, as in the DETR of transformers with ``auxiliary_loss=True``.
    """

    def __init__(self, layers: list[DecoderLayer], norm: nn.Module, norm_between_layers: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.norm_between_layers = norm_between_layers

    def forward(self, query_position: Tensor, memory: Tensor, position: Tensor, padding: Tensor | None) -> Tensor:
        """Decode the queries.

        Args:
            query_position: Learned position encoding of the queries [Q,d].
            memory: Output of the encoder [B,S,d].
            position: Position encoding of the memory [B,S,d].
            padding: Padding mask of the memory, bool [B,S], True where padded; None without padding.

        Returns:
            Query features of each layer [L,B,Q,d].
        """
        memory_key = memory + position
        x = torch.zeros_like(query_position).expand(memory.shape[0], -1, -1)  # [B,Q,d]
        outputs = []
        for layer in self.layers:
            x = layer(x, query_position, memory, memory_key, padding)
            if self.norm_between_layers:
                x = self.norm(x)
            outputs.append(x)
        if self.norm_between_layers:
            return torch.stack([*outputs[:-1], self.norm(x)])
        return self.norm(torch.stack(outputs))


class Transformer(nn.Module):
    """Encoder and decoder of DETR (https://arxiv.org/abs/2005.12872, appendix A.3), batch first.

    Args:
        dim: Number of features d, divisible by ``num_heads``.
        num_heads: Number of attention heads.
        num_encoder_layers: Number of encoder layers; may be 0.
        num_decoder_layers: Number of decoder layers L.
        dim_feedforward: Number of hidden features of the feed-forward networks.
        dropout: Dropout probability of attention weights, hidden features and sublayer outputs.
        pre_norm: Whether a sublayer normalizes its input instead of the sum with its output.
        norm_between_layers: Whether the decoder normalizes the input of each layer after the first; see
            :class:`Decoder`.
        activation: As for :class:`TransformerLayer`.
        num_ffn_layers: As for :class:`TransformerLayer`.
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
        norm_between_layers: bool = False,
        activation: str = "relu",
        num_ffn_layers: int = 2,
    ) -> None:
        super().__init__()
        shape = (dim, num_heads, dim_feedforward, dropout, pre_norm, activation, num_ffn_layers)
        self.encoder = Encoder(
            [EncoderLayer(*shape) for _ in range(num_encoder_layers)],
            nn.LayerNorm(dim) if pre_norm else nn.Identity(),
        )
        self.decoder = Decoder(
            [DecoderLayer(*shape) for _ in range(num_decoder_layers)], nn.LayerNorm(dim), norm_between_layers
        )
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, features: Tensor, position: Tensor, query_position: Tensor, padding: Tensor | None = None
    ) -> Tensor:
        """Encode the features and decode the queries.

        Args:
            features: Image features [B,S,d].
            position: Position encoding [B,S,d], or [1,S,d] if it is the same for all images.
            query_position: Learned position encoding of the queries [Q,d].
            padding: Padding mask, bool [B,S], True where padded; None without padding.

        Returns:
            Query features of each decoder layer [L,B,Q,d].
        """
        memory = self.encoder(features, position, padding)
        return self.decoder(query_position, memory, position, padding)

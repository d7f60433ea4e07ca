"""The position encoding and the feed-forward network of MMDetection 2.11."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from detr_fast import ops
from detr_fast.ops.sine import check_wavelengths
from detr_fast.ops.sine_position_encoding import check_normalization


class SinePositionalEncoding(nn.Module):
    """The sine encoding of positions in the unpadded part of a feature map.

    Args:
        num_feats: Number of features F per axis, even.
        temperature: Base of the geometric sequence of wavelengths.
        normalize: Whether each axis of the unpadded part is mapped to ``[0, scale]``.
        scale: Length of a normalized axis, in radians.
        eps: Added to the divisor of the normalization.

    Raises:
        TypeError: ``temperature``, ``scale`` or ``eps`` is not a number.
        ValueError: ``num_feats`` or ``temperature`` is out of range.
    """

    def __init__(
        self,
        num_feats: int,
        temperature: float = 10000,
        normalize: bool = False,
        scale: float = 2 * math.pi,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        check_wavelengths(num_feats, temperature)
        check_normalization(scale, eps, 0.0)
        self.num_feats = num_feats
        self.temperature = temperature
        self.normalize = normalize
        self.scale = scale
        self.eps = eps

    def forward(self, mask: Tensor) -> Tensor:
        """Encode the cells of a feature map.

        Args:
            mask: Padding mask [B,H,W], bool or of another dtype, nonzero where padded.

        Returns:
            The encoding, float32 [B,2F,H,W].
        """
        return ops.sine_position_encoding(
            mask.bool(),
            self.num_feats,
            temperature=self.temperature,
            normalize=self.normalize,
            scale=self.scale,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        """Return the arguments."""
        return (
            f"num_feats={self.num_feats}, temperature={self.temperature}, normalize={self.normalize}, "
            f"scale={self.scale}, eps={self.eps}"
        )


_ACTIVATIONS: dict[str, type[nn.Module]] = {
    activation.__name__: activation
    for activation in (nn.ReLU, nn.LeakyReLU, nn.RReLU, nn.ReLU6, nn.ELU, nn.Sigmoid, nn.Tanh, nn.GELU)
}


class FFN(nn.Module):
    """A feed-forward network with a residual connection; its parameters have MMDetection's names.

    Args:
        embed_dims: Number of features d of the input and the output.
        feedforward_channels: Number of hidden features.
        num_fcs: Number of linear layers, at least 2.
        act_cfg: The activation function between them: a mapping with the ``type``, the name of a class of ``torch.nn``,
            and its arguments. The types are ReLU, LeakyReLU, RReLU, ReLU6, ELU, Sigmoid, Tanh and GELU.
        dropout: Dropout probability of the hidden features and of the output.
        add_residual: Whether the residual is added to the output.

    Raises:
        ValueError: ``num_fcs`` is below 2, or there is no such activation function.
    """

    def __init__(
        self,
        embed_dims: int,
        feedforward_channels: int,
        num_fcs: int = 2,
        act_cfg: Mapping[str, Any] = {"type": "ReLU", "inplace": True},
        dropout: float = 0.0,
        add_residual: bool = True,
    ) -> None:
        super().__init__()
        if num_fcs < 2:
            raise ValueError(f"num_fcs must be at least 2, got {num_fcs}")
        options = dict(act_cfg)
        kind = options.pop("type", None)
        if kind not in _ACTIVATIONS:
            raise ValueError(f"the type in act_cfg must be one of {', '.join(_ACTIVATIONS)}, got {kind!r}")
        self.embed_dims = embed_dims
        self.feedforward_channels = feedforward_channels
        self.num_fcs = num_fcs
        self.act_cfg = dict(act_cfg)
        self.add_residual = add_residual
        widths = [embed_dims] + [feedforward_channels] * (num_fcs - 1)
        hidden = [
            nn.Sequential(nn.Linear(width, feedforward_channels), _ACTIVATIONS[kind](**options), nn.Dropout(dropout))
            for width in widths[:-1]
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(feedforward_channels, embed_dims))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Apply the network.

        Args:
            x: [...,d].
            residual: [...,d], what is added to the output; None for the input. It is not used without ``add_residual``.

        Returns:
            [...,d].
        """
        out: Tensor = self.layers(x)
        if not self.add_residual:
            return out
        return (x if residual is None else residual) + self.dropout(out)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(embed_dims={self.embed_dims}, feedforward_channels={self.feedforward_channels}, "
            f"num_fcs={self.num_fcs}, act_cfg={self.act_cfg}, dropout={self.dropout}, add_residual={self.add_residual})"
        )

"""Residual backbones (https://arxiv.org/abs/1512.03385) with the parameter names of torchvision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]  # builds the normalization for a number of channels


class FrozenBatchNorm2d(nn.Module):
    """Batch normalization with fixed statistics and fixed affine parameters, all of which are buffers.

    The batches of a detector are too small for batch statistics. A state dict of ``nn.BatchNorm2d`` can be loaded; its
    ``num_batches_tracked`` is ignored. The four buffers of the state dict are folded into a factor and a summand when
    it is loaded and when the module is converted to another dtype or device; call :meth:`fold` after changing a buffer
    in another way.

    Args:
        num_features: Number of channels.
        eps: Value added to the variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    scale: Tensor  # [C,1,1], not in the state dict, as shift
    shift: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("scale", None, persistent=False)
        self.register_buffer("shift", None, persistent=False)
        self.fold()

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Normalize features [B,C,H,W], whatever is padded."""
        # A single pass that saves no activation for the backward pass, whereas F.batch_norm would save x.
        return torch.addcmul(self.shift.to(x.dtype), x, self.scale.to(x.dtype))

    @torch.no_grad()
    def fold(self) -> None:
        """Compute the factor and the summand of the normalization from the four buffers of the state dict."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()  # [C]
        self.scale = scale[:, None, None]
        self.shift = (self.bias - self.running_mean * scale)[:, None, None]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenBatchNorm2d:
        super()._apply(fn, recurse)
        self.fold()  # in the new dtype, whose rounding is that of the buffers
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.fold()


class MaskedGroupNorm(nn.GroupNorm):
    """Group normalization (https://arxiv.org/abs/1803.08494) whose statistics leave padding out.

    Padded features become 0, which is what a convolution pads with, so that features do not depend on the padding.
    """

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Normalize features [B,C,H,W]; ``padding`` is bool [B,H,W], True where an image is padded, or None."""
        if padding is None:
            return super().forward(x)
        present = (~padding)[:, None, None].to(torch.promote_types(x.dtype, torch.float32))  # [B,1,1,H,W]
        groups = x.unflatten(1, (self.num_groups, -1)) * present  # [B,G,C/G,H,W]
        count = present.sum((2, 3, 4), keepdim=True).clamp(min=1) * groups.shape[2]
        centered = (groups - groups.sum((2, 3, 4), keepdim=True) / count) * present
        variance = centered.square().sum((2, 3, 4), keepdim=True) / count
        normalized = (centered * (variance + self.eps).rsqrt()).flatten(1, 2)
        weight, bias = self.weight[:, None, None], self.bias[:, None, None]
        return ((normalized * weight + bias) * present[:, 0]).to(x.dtype)


class Shortcut(nn.Sequential):
    """The shortcut of a block: a 1x1 convolution and a normalization, or nothing if the shapes are the same."""

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Map the input of the block to the shape of its output; ``padding`` is that of the output."""
        if not len(self):
            return x
        convolution, norm = self
        return norm(convolution(x), padding)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut: the block of ResNet-18 and ResNet-34."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, norm: Norm) -> None:
        super().__init__()
        if dilation != 1:
            raise ValueError("only bottleneck networks (ResNet-50 and up) can be dilated")
        self.stride = stride
        self.conv1 = _conv3x3(in_channels, width, stride)
        self.bn1 = norm(width)
        self.conv2 = _conv3x3(width, width)
        self.bn2 = norm(width)
        self.downsample = _shortcut(in_channels, width, stride, norm)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        padding = _strided(padding, self.stride)
        y = self.bn1(self.conv1(x), padding).relu_()
        y = self.bn2(self.conv2(y), padding)
        return (y + self.downsample(x, padding)).relu_()


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut: the block of ResNet-50 and ResNet-101.

    The 3x3 convolution has the stride, as in torchvision, and not the first 1x1 convolution, as in the paper.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, norm: Norm) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.stride = stride
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = _conv3x3(width, width, stride, dilation)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = norm(out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        strided = _strided(padding, self.stride)
        y = self.bn1(self.conv1(x), padding).relu_()
        y = self.bn2(self.conv2(y), strided).relu_()
        y = self.bn3(self.conv3(y), strided)
        return (y + self.downsample(x, strided)).relu_()


class ResNet(nn.Module):
    """A residual network without classifier, which maps images [B,3,H,W] to features [B,num_channels,h,w].

    The first convolution, the optional max pooling after it, and each stage after the first have stride 2; ``stride``
    is the product.

    Args:
        block: ``BasicBlock`` or ``Bottleneck``.
        depths: Number of blocks of each stage.
        widths: Number of channels of each stage, before the expansion of the block.
        stem_kernel: Kernel size of the first convolution.
        stem_pool: Whether a 3x3 max pooling of stride 2 follows the first convolution.
        norm: Builds the normalization for a number of channels.
        dilate_last_stage: Whether the last stage has stride 1 and dilated convolutions ("DC5").
        frozen: Names of the modules that are not trained.

    Raises:
        ValueError: A stage of basic blocks would be dilated.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        *,
        stem_kernel: int = 7,
        stem_pool: bool = True,
        norm: Norm = FrozenBatchNorm2d,
        dilate_last_stage: bool = False,
        frozen: Sequence[str] = ("conv1", "layer1"),
    ) -> None:
        super().__init__()
        channels = widths[0]
        self.conv1 = nn.Conv2d(3, channels, stem_kernel, stride=2, padding=stem_kernel // 2, bias=False)
        self.bn1 = norm(channels)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem_pool else nn.Identity()
        self.stride = 4 if stem_pool else 2
        self.stages = [f"layer{number}" for number in range(1, len(depths) + 1)]
        for name, depth, width in zip(self.stages, depths, widths, strict=True):
            stride = 1 if name == "layer1" else 2
            dilation = 1
            if dilate_last_stage and name == self.stages[-1]:
                stride, dilation = 1, stride
            # The first block of a dilated stage is not dilated, as torchvision's weights require.
            blocks = [block(channels, width, stride, 1, norm)]
            channels = width * block.expansion
            blocks += [block(channels, width, 1, dilation, norm) for _ in range(depth - 1)]
            self.add_module(name, nn.Sequential(*blocks))
            self.stride *= stride
        self.num_channels = channels
        self._reset_parameters()
        for name in frozen:
            self.get_submodule(name).requires_grad_(False)

    def forward(self, images: Tensor, padding: Tensor | None = None) -> Tensor:
        """Compute features [B,num_channels,h,w] of images [B,3,H,W].

        Args:
            images: The images, zero where they are padded.
            padding: bool [B,H,W], True where an image is padded; None if none is. Normalizations with fixed statistics
                do not need it.
        """
        padding = _strided(padding, 2)
        x = self.maxpool(self.bn1(self.conv1(images), padding).relu_())
        if not isinstance(self.maxpool, nn.Identity):
            padding = _strided(padding, 2)
        for name in self.stages:
            for block in self.get_submodule(name).children():
                assert isinstance(block, BasicBlock | Bottleneck)
                x = block(x, padding)
                padding = _strided(padding, block.stride)
        return x

    def _reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


BACKBONES: dict[str, Callable[[], ResNet]] = {
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "resnet50_dc5": partial(ResNet, Bottleneck, (3, 4, 6, 3), dilate_last_stage=True),
    "resnet101": partial(ResNet, Bottleneck, (3, 4, 23, 3)),
    "resnet101_dc5": partial(ResNet, Bottleneck, (3, 4, 23, 3), dilate_last_stage=True),
    # Stride 8 and nothing frozen, to be trained from scratch on small images.
    "resnet_tiny": partial(
        ResNet,
        BasicBlock,
        (1, 1, 2),
        (32, 64, 128),
        stem_kernel=3,
        stem_pool=False,
        norm=partial(MaskedGroupNorm, 8),
        frozen=(),
    ),
}


def build_backbone(name: str) -> ResNet:
    """Build a backbone with random weights.

    All backbones but ``resnet_tiny`` have frozen batch norms and need pretrained weights; see
    :func:`load_backbone_weights`.

    Args:
        name: A name in :data:`BACKBONES`.

    Raises:
        ValueError: There is no backbone of that name.
    """
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}; choose one of {', '.join(BACKBONES)}, or pass an nn.Module")
    return BACKBONES[name]()


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)


def _strided(padding: Tensor | None, stride: int) -> Tensor | None:
    """Return the padding of the output of a convolution, which is centered at every stride-th position of its input."""
    return padding if padding is None or stride == 1 else padding[:, ::stride, ::stride]


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: Norm) -> Shortcut:
    if stride == 1 and in_channels == out_channels:
        return Shortcut()
    return Shortcut(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), norm(out_channels))

"""Normalization and padding of packed uint8 images, with the mask, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch_on, triton_dtype


@triton.jit
def _of_channel(channel, FIRST: tl.constexpr, SECOND: tl.constexpr, THIRD: tl.constexpr, COMPUTE: tl.constexpr):
    """The number of the channel among three."""
    rest = tl.where(channel == 1, tl.full(channel.shape, SECOND, COMPUTE), tl.full(channel.shape, THIRD, COMPUTE))
    return tl.where(channel == 0, tl.full(channel.shape, FIRST, COMPUTE), rest)


@triton.jit
def normalize_and_pad_kernel(
    pixels_ptr,  # uint8 [N]
    layout_ptr,  # [B,4]: first byte, height, width, whether mirrored
    batch_ptr,  # [B,3,H,W], or [B,H,W,3] with channels last
    mask_ptr,  # [B,H,W]
    num_bytes,  # N
    height,
    width,
    SCALE_0: tl.constexpr,
    SCALE_1: tl.constexpr,
    SCALE_2: tl.constexpr,
    SHIFT_0: tl.constexpr,
    SHIFT_1: tl.constexpr,
    SHIFT_2: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program writes BLOCK numbers of a row: of all channels in turn, or of the pixels in turn with channels last.

    Neighboring threads store neighboring numbers. The layout is read on the device, and where it is wrong, no byte
    outside of the buffer is read. An image has less than 2**31 bytes.
    """
    block, row, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    layout_ptr += 4 * image
    begin, rows, columns = (
        tl.load(layout_ptr),
        tl.load(layout_ptr + 1).to(tl.int32),
        tl.load(layout_ptr + 2).to(tl.int32),
    )
    flipped = tl.load(layout_ptr + 3) != 0
    left = tl.where(begin < 0, 0, tl.maximum(num_bytes - begin, 0))  # bytes
    left = tl.minimum(left, 0x7FFFFFFF).to(tl.int32)

    number = block * BLOCK + tl.arange(0, BLOCK)
    inside = number < 3 * width
    if CHANNELS_LAST:
        x, channel, target = number // 3, number % 3, number
        batch_ptr += (image * height + row) * width * 3
    else:
        x, channel = number % width, number // width
        target = channel * height * width + x
        batch_ptr += image * 3 * height * width + row * width
    padding = (row >= rows) | (x >= columns)

    source = 3 * (row * columns + tl.where(flipped, columns - 1 - x, x)) + channel
    readable = inside & (padding == 0) & (source >= 0) & (source < left)
    value = tl.load(pixels_ptr + begin + source, mask=readable, other=0).to(COMPUTE)
    scale = _of_channel(channel, SCALE_0, SCALE_1, SCALE_2, COMPUTE)
    shift = _of_channel(channel, SHIFT_0, SHIFT_1, SHIFT_2, COMPUTE)
    tl.store(batch_ptr + target, tl.where(padding, 0.0, value * scale + shift), mask=inside)
    tl.store(mask_ptr + (image * height + row) * width + x, padding, mask=inside & (channel == 0))


def normalize_and_pad(
    pixels: Tensor,
    layout: Tensor,
    height: int,
    width: int,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    """Write the batch, [B,H,W,3] with channels last, else [B,3,H,W], and the mask [B,H,W]."""
    count, device = layout.shape[0], pixels.device
    shape = (count, height, width, 3) if channels_last else (count, 3, height, width)
    batch = torch.empty(shape, dtype=dtype, device=device)
    mask = torch.empty(count, height, width, dtype=torch.bool, device=device)
    if not mask.numel():
        return batch, mask
    scale = [1 / (255 * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    block = min(1024, triton.next_power_of_2(3 * width))
    with launch_on(pixels):
        normalize_and_pad_kernel[(triton.cdiv(3 * width, block), height, count)](
            pixels.contiguous(),
            layout.contiguous(),
            batch,
            mask,
            pixels.numel(),
            height,
            width,
            *(scale + shift),
            CHANNELS_LAST=channels_last,
            COMPUTE=triton_dtype(dtype),
            BLOCK=block,
        )
    return batch, mask

"""Sine position encoding of a padding mask: counts, normalisation, sines and cosines in one launch."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from detr_fast.kernels import launch_on

# pi/2 in three parts; multiples of the first two, up to 2**14, are exact in float32.
_HALF_PI_HIGH = tl.constexpr(math.floor(math.pi / 2 * 2**7) / 2**7)
_HALF_PI_MIDDLE = tl.constexpr(math.floor((math.pi / 2 - _HALF_PI_HIGH.value) * 2**21) / 2**21)
_HALF_PI_LOW = tl.constexpr(math.pi / 2 - _HALF_PI_HIGH.value - _HALF_PI_MIDDLE.value)
_QUADRANTS = tl.constexpr(2 / math.pi)


@triton.jit
def _sine_cosine(angle):
    """Both from one reduction to [-pi/4, pi/4] and two Taylor polynomials.

    In float32 about two units in the last place for angles below 25000, and a third of the work of two
    calls that must be ready for any angle.
    """
    if angle.dtype == tl.float64:
        return tl.sin(angle), tl.cos(angle)
    quadrant = tl.floor(angle * _QUADRANTS + 0.5)
    rest = angle - quadrant * _HALF_PI_HIGH - quadrant * _HALF_PI_MIDDLE - quadrant * _HALF_PI_LOW
    square = rest * rest
    sine = rest + rest * square * (-1 / 6 + square * (1 / 120 + square * (-1 / 5040 + square * (1 / 362880))))
    cosine = 1 + square * (-1 / 2 + square * (1 / 24 + square * (-1 / 720 + square * (1 / 40320))))
    turn = quadrant.to(tl.int32)
    swapped = (turn & 1) != 0
    sine_part, cosine_part = tl.where(swapped, cosine, sine), tl.where(swapped, sine, cosine)
    return (
        tl.where((turn & 2) != 0, -sine_part, sine_part),
        tl.where(((turn + 1) & 2) != 0, -cosine_part, cosine_part),
    )


@triton.jit
def _position(count, total, NORMALIZE: tl.constexpr, SCALE: tl.constexpr, EPS: tl.constexpr, OFFSET: tl.constexpr):
    if NORMALIZE:
        return (count + OFFSET) / (total + EPS) * SCALE
    return count + OFFSET


@triton.jit
def _store_axis(
    out_ptr,  # the image's first cell of this row, this axis's first channel
    position,  # [BLOCK_W]
    cell,  # [BLOCK_W], within the row
    inside,  # [BLOCK_W]
    cell_stride,
    channel_stride,
    NUM_FEATS: tl.constexpr,
    LOG2_TEMPERATURE: tl.constexpr,
    INTERLEAVE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    PAIRS: tl.constexpr = NUM_FEATS // 2
    for start in range(0, PAIRS, BLOCK_P):
        pair = start + tl.arange(0, BLOCK_P)
        frequency = tl.exp2(pair.to(position.dtype) * (-2 * LOG2_TEMPERATURE / NUM_FEATS))  # [P]
        if CHANNELS_LAST:
            sine, cosine = _sine_cosine(position[:, None] * frequency[None, :])  # [W,P]
            cell_ptr = out_ptr + cell[:, None] * cell_stride
            if INTERLEAVE:
                channel = 2 * start + tl.arange(0, 2 * BLOCK_P)
                tl.store(
                    cell_ptr + channel[None, :],
                    tl.interleave(sine, cosine),
                    mask=inside[:, None] & (channel < NUM_FEATS)[None, :],
                )
            else:
                stored = inside[:, None] & (pair < PAIRS)[None, :]
                tl.store(cell_ptr + pair[None, :], sine, mask=stored)
                tl.store(cell_ptr + PAIRS + pair[None, :], cosine, mask=stored)
        else:
            sine, cosine = _sine_cosine(frequency[:, None] * position[None, :])  # [P,W]
            stored = (pair < PAIRS)[:, None] & inside[None, :]
            if INTERLEAVE:
                sine_channel, cosine_channel = 2 * pair, 2 * pair + 1
            else:
                sine_channel, cosine_channel = pair, PAIRS + pair
            cell_ptr = out_ptr + cell[None, :]
            tl.store(cell_ptr + sine_channel[:, None] * channel_stride, sine, mask=stored)
            tl.store(cell_ptr + cosine_channel[:, None] * channel_stride, cosine, mask=stored)


@triton.jit(do_not_specialize=["height"])
def sine_position_encoding_kernel(
    mask_ptr,  # [B,H,W], True = padding
    out_ptr,  # [B,2F,H,W], or [B,H*W,2F] with CHANNELS_LAST
    height,
    width,
    NUM_FEATS: tl.constexpr,
    LOG2_TEMPERATURE: tl.constexpr,
    NORMALIZE: tl.constexpr,
    SCALE: tl.constexpr,
    EPS: tl.constexpr,
    OFFSET: tl.constexpr,
    INTERLEAVE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One program writes all channels of BLOCK_W cells of a row; it counts its columns and its row itself."""
    first, row, image = tl.program_id(0) * BLOCK_W, tl.program_id(1), tl.program_id(2).to(tl.int64)
    mask_ptr += image * height * width
    cell = first + tl.arange(0, BLOCK_W)
    inside = cell < width

    above = tl.zeros((BLOCK_W,), tl.int32)  # valid cells of the column, down to this row
    column_total = tl.zeros((BLOCK_W,), tl.int32)
    start = 0
    while start < height:
        rows = start + tl.arange(0, BLOCK_H)
        padding = tl.load(
            mask_ptr + rows[:, None] * width + cell[None, :], mask=(rows < height)[:, None] & inside[None, :], other=1
        )
        valid = (padding == 0).to(tl.int32)  # [H,W]
        column_total += tl.sum(valid, 0)
        above += tl.sum(tl.where((rows <= row)[:, None], valid, 0), 0)
        start += BLOCK_H

    row_ptr = mask_ptr + row * width
    here = (tl.load(row_ptr + cell, mask=inside, other=1) == 0).to(tl.int32)
    left = tl.cumsum(here, 0)  # valid cells of the row, up to this one
    row_total = tl.zeros((BLOCK_W,), tl.int32)
    before = tl.zeros((BLOCK_W,), tl.int32)
    start = 0
    while start < width:
        cells = start + tl.arange(0, BLOCK_W)
        valid = (tl.load(row_ptr + cells, mask=cells < width, other=1) == 0).to(tl.int32)
        row_total += valid
        before += tl.where(cells < first, valid, 0)
        start += BLOCK_W
    left += tl.sum(before, 0)

    y = _position(above.to(COMPUTE), column_total.to(COMPUTE), NORMALIZE, SCALE, EPS, OFFSET)
    x = _position(left.to(COMPUTE), tl.sum(row_total, 0).to(COMPUTE), NORMALIZE, SCALE, EPS, OFFSET)

    if CHANNELS_LAST:
        cell_stride, channel_stride = 2 * NUM_FEATS, 1
    else:
        cell_stride, channel_stride = 1, height * width
    out_ptr += image * height * width * 2 * NUM_FEATS + row.to(tl.int64) * width * cell_stride
    _store_axis(
        out_ptr, y, cell, inside, cell_stride, channel_stride,
        NUM_FEATS, LOG2_TEMPERATURE, INTERLEAVE, CHANNELS_LAST, BLOCK_P,
    )  # fmt: skip
    out_ptr += NUM_FEATS * channel_stride
    _store_axis(
        out_ptr, x, cell, inside, cell_stride, channel_stride,
        NUM_FEATS, LOG2_TEMPERATURE, INTERLEAVE, CHANNELS_LAST, BLOCK_P,
    )  # fmt: skip


def sine_position_encoding(
    mask: Tensor,
    num_feats: int,
    *,
    temperature: float,
    normalize: bool,
    scale: float,
    eps: float,
    offset: float,
    dtype: torch.dtype,
    layout: str,
    interleave: bool,
) -> Tensor:
    mask = mask.contiguous()
    batch, height, width = mask.shape
    channels_last = layout == "blc"
    shape = (batch, height * width, 2 * num_feats) if channels_last else (batch, 2 * num_feats, height, width)
    out = torch.empty(shape, dtype=dtype, device=mask.device)
    if not out.numel():
        return out
    # Neighbouring threads write neighbouring cells or, with channels last, neighbouring channels.
    block_w = min(16 if channels_last else 64, triton.next_power_of_2(width))
    with launch_on(mask):
        sine_position_encoding_kernel[(triton.cdiv(width, block_w), height, batch)](
            mask,
            out,
            height,
            width,
            NUM_FEATS=num_feats,
            LOG2_TEMPERATURE=math.log2(temperature),
            NORMALIZE=normalize,
            SCALE=scale,
            EPS=eps,
            OFFSET=offset,
            INTERLEAVE=interleave,
            CHANNELS_LAST=channels_last,
            COMPUTE=tl.float64 if dtype == torch.float64 else tl.float32,
            BLOCK_H=32,
            BLOCK_W=block_w,
            BLOCK_P=min(1024 // block_w, triton.next_power_of_2(num_feats // 2)),
        )
    return out

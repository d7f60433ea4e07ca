"""Sine position encoding of a padding mask: counts, normalisation, sines and cosines in one launch."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch_on, triton_dtype
from .sine import frequencies, sine_cosine


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
        frequency = frequencies(pair, position.dtype, NUM_FEATS, LOG2_TEMPERATURE)  # [P]
        if CHANNELS_LAST:
            sine, cosine = sine_cosine(position[:, None] * frequency[None, :], True)  # [W,P]
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
            sine, cosine = sine_cosine(frequency[:, None] * position[None, :], True)  # [P,W]
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
    """One program writes all channels of BLOCK_W cells of a row; it counts the valid cells before them itself."""
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
    temperature: float,
    normalize: bool,
    scale: float,
    eps: float,
    offset: float,
    dtype: torch.dtype,
    layout: str,
    interleave: bool,
) -> Tensor:
    """Encode a mask [B,H,W] in [B,2F,H,W] or [B,H*W,2F]."""
    mask = mask.contiguous()
    batch, height, width = mask.shape
    channels_last = layout == "blc"
    shape = (batch, height * width, 2 * num_feats) if channels_last else (batch, 2 * num_feats, height, width)
    out = torch.empty(shape, dtype=dtype, device=mask.device)
    if not out.numel():
        return out
    # Neighboring threads store neighboring cells or, with channels last, neighboring channels.
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
            COMPUTE=triton_dtype(dtype),
            BLOCK_H=32,
            BLOCK_W=block_w,
            BLOCK_P=min(1024 // block_w, triton.next_power_of_2(num_feats // 2)),
        )
    return out

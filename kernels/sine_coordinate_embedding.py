"""Embedding of coordinates in sines and cosines: one launch forward, one backward, no atomics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch_on, triton_dtype
from .sine import SMALL_ANGLE, frequencies, sine_cosine


@triton.jit
def _blocks(NUM_COORDINATES: tl.constexpr, Y_FIRST: tl.constexpr, BLOCK_N: tl.constexpr):
    """The program's blocks of features: number, row, index in the row, and the coordinate that is embedded there."""
    number = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row, index = number // NUM_COORDINATES, number % NUM_COORDINATES
    coordinate = index
    if Y_FIRST:
        coordinate = tl.where(index < 2, 1 - index, index)
    return number, row, index, coordinate


@triton.jit
def _load_positions(ptr, inside, COMPUTE: tl.constexpr, SCALE: tl.constexpr, SMALL_POSITION: tl.constexpr):
    """Scaled coordinates, and whether all of them make small angles."""
    position = tl.load(ptr, mask=inside, other=0).to(COMPUTE) * SCALE
    return position, tl.min((tl.abs(position) < SMALL_POSITION).to(tl.int32), 0) == 1


@triton.jit(do_not_specialize=["row_stride", "coordinate_stride", "num_blocks"])
def sine_coordinate_embedding_fwd_kernel(
    coordinates_ptr,  # [N,D]
    out_ptr,  # [N,D*F]
    row_stride,
    coordinate_stride,
    num_blocks,  # N*D
    NUM_COORDINATES: tl.constexpr,
    NUM_FEATS: tl.constexpr,
    LOG2_TEMPERATURE: tl.constexpr,
    SCALE: tl.constexpr,
    SMALL_POSITION: tl.constexpr,
    Y_FIRST: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One program writes the features of BLOCK_N coordinates."""
    number, row, _, coordinate = _blocks(NUM_COORDINATES, Y_FIRST, BLOCK_N)
    inside = number < num_blocks
    coordinates_ptr += row * row_stride + coordinate * coordinate_stride
    position, small = _load_positions(coordinates_ptr, inside, COMPUTE, SCALE, SMALL_POSITION)
    for start in range(0, NUM_FEATS // 2, BLOCK_P):
        frequency = frequencies(start + tl.arange(0, BLOCK_P), COMPUTE, NUM_FEATS, LOG2_TEMPERATURE)
        sine, cosine = sine_cosine(position[:, None] * frequency[None, :], small)  # [N,P]
        feature = 2 * start + tl.arange(0, 2 * BLOCK_P)
        tl.store(
            out_ptr + number[:, None] * NUM_FEATS + feature[None, :],
            tl.interleave(sine, cosine),
            mask=inside[:, None] & (feature < NUM_FEATS)[None, :],
        )


@triton.jit(do_not_specialize=["row_stride", "coordinate_stride", "num_blocks"])
def sine_coordinate_embedding_bwd_kernel(
    coordinates_ptr,  # [N,D]
    grad_ptr,  # [N,D*F]
    grad_coordinates_ptr,  # [N,D]
    row_stride,
    coordinate_stride,
    grad_row_stride,
    grad_feature_stride,
    num_blocks,  # N*D
    NUM_COORDINATES: tl.constexpr,
    NUM_FEATS: tl.constexpr,
    LOG2_TEMPERATURE: tl.constexpr,
    SCALE: tl.constexpr,
    SMALL_POSITION: tl.constexpr,
    Y_FIRST: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One program sums the gradients of BLOCK_N coordinates over their features, in a fixed order."""
    number, row, index, coordinate = _blocks(NUM_COORDINATES, Y_FIRST, BLOCK_N)
    inside = number < num_blocks
    coordinates_ptr += row * row_stride + coordinate * coordinate_stride
    position, small = _load_positions(coordinates_ptr, inside, COMPUTE, SCALE, SMALL_POSITION)
    grad_ptr += row * grad_row_stride + index * NUM_FEATS * grad_feature_stride
    total = tl.zeros((BLOCK_N, BLOCK_P), COMPUTE)
    for start in range(0, NUM_FEATS // 2, BLOCK_P):
        pair = start + tl.arange(0, BLOCK_P)
        frequency = frequencies(pair, COMPUTE, NUM_FEATS, LOG2_TEMPERATURE)
        frequency = tl.where(pair < NUM_FEATS // 2, frequency, 0.0)  # a frequency beyond the last may overflow
        sine, cosine = sine_cosine(position[:, None] * frequency[None, :], small)  # [N,P]
        feature = 2 * start + tl.arange(0, 2 * BLOCK_P)
        grad = tl.load(
            grad_ptr[:, None] + feature[None, :] * grad_feature_stride,
            mask=inside[:, None] & (feature < NUM_FEATS)[None, :],
            other=0,
        ).to(COMPUTE)
        grad_sine, grad_cosine = tl.split(tl.reshape(grad, (BLOCK_N, BLOCK_P, 2)))
        total += (grad_sine * cosine - grad_cosine * sine) * frequency[None, :]
    grad_coordinates_ptr += row * NUM_COORDINATES + coordinate
    tl.store(grad_coordinates_ptr, tl.sum(total, 1) * SCALE, mask=inside)


def sine_coordinate_embedding(
    coordinates: Tensor, num_feats: int, temperature: float, scale: float, order: str
) -> Tensor:
    """Embed coordinates [...,D] in [...,D*F], of the coordinates' dtype."""
    num_coordinates = coordinates.shape[-1]
    shape = (*coordinates.shape[:-1], num_coordinates * num_feats)
    out = torch.empty(shape, dtype=coordinates.dtype, device=coordinates.device)
    if out.numel():
        rows = coordinates.reshape(-1, num_coordinates)
        options = _launch_options(num_coordinates, num_feats, temperature, scale, order, coordinates.dtype)
        with launch_on(coordinates):
            sine_coordinate_embedding_fwd_kernel[(triton.cdiv(rows.numel(), options["BLOCK_N"]),)](
                rows, out, *rows.stride(), rows.numel(), **options
            )
    return out


def sine_coordinate_embedding_backward(
    grads: Sequence[Tensor],  # [...,D*F]
    needed: Sequence[bool],
    coordinates: Tensor,
    num_feats: int,
    temperature: float,
    scale: float,
    order: str,
) -> tuple[Tensor]:
    """Compute the gradient of the coordinates [...,D]."""
    (grad,) = grads
    grad_coordinates = torch.empty(coordinates.shape, dtype=coordinates.dtype, device=coordinates.device)
    if coordinates.numel():
        num_coordinates = coordinates.shape[-1]
        rows, grad_rows = coordinates.reshape(-1, num_coordinates), grad.reshape(-1, num_coordinates * num_feats)
        options = _launch_options(num_coordinates, num_feats, temperature, scale, order, coordinates.dtype)
        with launch_on(coordinates):
            sine_coordinate_embedding_bwd_kernel[(triton.cdiv(rows.numel(), options["BLOCK_N"]),)](
                rows, grad_rows, grad_coordinates, *rows.stride(), *grad_rows.stride(), rows.numel(), **options
            )
    return (grad_coordinates,)


def _launch_options(
    num_coordinates: int, num_feats: int, temperature: float, scale: float, order: str, dtype: torch.dtype
) -> dict[str, Any]:
    """Compile-time constants of both kernels."""
    block_p = min(64, triton.next_power_of_2(num_feats // 2))
    return {
        "NUM_COORDINATES": num_coordinates,
        "NUM_FEATS": num_feats,
        "LOG2_TEMPERATURE": math.log2(temperature),
        "SCALE": scale,
        "SMALL_POSITION": SMALL_ANGLE * min(1.0, temperature),  # no frequency is above 1 / temperature
        "Y_FIRST": order == "yxwh" and num_coordinates > 1,
        "COMPUTE": triton_dtype(dtype),
        "BLOCK_N": 1024 // block_p,
        "BLOCK_P": block_p,
    }

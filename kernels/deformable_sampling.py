"""Both forms of multi-scale deformable attention: one launch forward, one backward, and one more for fixed point.

A row is one query and head. A program computes BLOCK_M rows of one image: for each of their points it loads the values
of the four cells around it, WIDTH adjacent numbers each. Backward, the gradients of the values are added up by atomic
operations, either in floating point, whose result depends on the order, or in fixed point, whose result does not.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from detr_fast.ops.deformable_sampling import SpatialShapes, widest_dtype

from .launch import launch_on, triton_dtype

_MAX_LEVELS = 8  # of which the sizes are arguments of the kernels; those of more are copied to the device
_FORWARD_TILE = 1024  # numbers of the values that a program loads at once
_BACKWARD_TILE = 512
_CONVERTED = 1024  # numbers that a program converts from fixed point


@triton.jit
def _rows(num_queries, NUM_HEADS: tl.constexpr, BLOCK_M: tl.constexpr):
    """The image of a program, and the rows in it, with their query and head."""
    num_rows = num_queries * NUM_HEADS
    num_blocks = tl.cdiv(num_rows, BLOCK_M)
    program = tl.program_id(0)
    row = (program % num_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    return (program // num_blocks).to(tl.int64), row, row < num_rows


@triton.jit
def _level_size(
    shapes_ptr,
    size0,
    size1,
    size2,
    size3,
    size4,
    size5,
    size6,
    size7,
    LEVEL: tl.constexpr,
    ON_DEVICE: tl.constexpr,
):
    """Height and width of a level, from the device or from 32 bits each of an argument."""
    if ON_DEVICE:
        height = tl.load(shapes_ptr + 2 * LEVEL).to(tl.int32)
        width = tl.load(shapes_ptr + 2 * LEVEL + 1).to(tl.int32)
    else:
        if LEVEL == 0:
            size = size0
        elif LEVEL == 1:
            size = size1
        elif LEVEL == 2:
            size = size2
        elif LEVEL == 3:
            size = size3
        elif LEVEL == 4:
            size = size4
        elif LEVEL == 5:
            size = size5
        elif LEVEL == 6:
            size = size6
        else:
            size = size7
        height = (size.to(tl.int64) >> 32).to(tl.int32)
        width = (size.to(tl.int64) & 0x7FFFFFFF).to(tl.int32)
    return height, width


@triton.jit
def _is_finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def _load_point(
    points_ptr,  # of the rows' queries
    inside,
    LEVEL: tl.constexpr,
    COORDINATES: tl.constexpr,
    SHARED: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """The reference point of a level, its width and height, and whether all are finite.

    Without reference points it is 0, and without boxes the width and height are 1.
    """
    x, y = tl.zeros(inside.shape, COMPUTE), tl.zeros(inside.shape, COMPUTE)
    width, height = tl.full(inside.shape, 1, COMPUTE), tl.full(inside.shape, 1, COMPUTE)
    finite = inside
    if COORDINATES > 0:
        if not SHARED:
            points_ptr += LEVEL * COORDINATES
        x = tl.load(points_ptr, mask=inside, other=0).to(COMPUTE)
        y = tl.load(points_ptr + 1, mask=inside, other=0).to(COMPUTE)
        finite = _is_finite(x) & _is_finite(y)
    if COORDINATES == 4:
        width = tl.load(points_ptr + 2, mask=inside, other=0).to(COMPUTE)
        height = tl.load(points_ptr + 3, mask=inside, other=0).to(COMPUTE)
        finite = finite & _is_finite(width) & _is_finite(height)
    return x, y, width, height, finite


@triton.jit
def _load_sample(
    locations_ptr,
    weights_ptr,
    n,
    inside,
    center_x,
    center_y,
    box_width,
    box_height,
    finite,
    greatest,
    inverse_sum,
    offset_scale,
    height,
    width,
    NUM_POINTS: tl.constexpr,  # of the level
    COORDINATES: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """The location of the n-th point in fractions of its level, its weight, whether it is usable, and its offset."""
    x = tl.load(locations_ptr + 2 * n, mask=inside, other=0).to(COMPUTE)
    y = tl.load(locations_ptr + 2 * n + 1, mask=inside, other=0).to(COMPUTE)
    weight = tl.load(weights_ptr + n, mask=inside, other=0).to(COMPUTE)
    usable, offset_x, offset_y = inside, x, y
    if COORDINATES > 0:
        usable = inside & finite & _is_finite(x) & _is_finite(y)
        weight = tl.exp(weight - greatest) * inverse_sum
        offset_x, offset_y = tl.where(usable, x, 0), tl.where(usable, y, 0)
        if COORDINATES == 4:
            x = center_x + x / NUM_POINTS * box_width * offset_scale
            y = center_y + y / NUM_POINTS * box_height * offset_scale
        else:
            x, y = center_x + x / width, center_y + y / height
    return x, y, weight, usable, offset_x, offset_y


@triton.jit
def _cell(x, y, height, width, inside, DISCRETE: tl.constexpr):
    """The upper left cell of the four around each location, the fractions from there, and whether any may exist.

    Discrete sampling takes that cell alone.
    """
    if DISCRETE:
        near = inside & (x == x) & (y == y) & (width > 0) & (height > 0)
        x = tl.minimum(tl.maximum(tl.where(near, x + 0.5, 0), 0), (width - 1).to(x.dtype))
        y = tl.minimum(tl.maximum(tl.where(near, y + 0.5, 0), 0), (height - 1).to(y.dtype))
        left, top = tl.floor(x), tl.floor(y)
        return left.to(tl.int32), top.to(tl.int32), x * 0, y * 0, near
    x, y = x - 0.5, y - 0.5
    near = inside & (x >= -1) & (x < width) & (y >= -1) & (y < height)  # not for NaN
    x, y = tl.where(near, x, 0), tl.where(near, y, 0)
    left, top = tl.floor(x), tl.floor(y)
    return left.to(tl.int32), top.to(tl.int32), x - left, y - top, near


@triton.jit
def _corner(
    left,
    top,
    right_part,
    lower_part,
    near,
    first,
    height,
    width,
    num_values,
    RIGHT: tl.constexpr,
    LOWER: tl.constexpr,
):
    """The index of a corner's value, whether it exists, and its parts along x and y of the bilinear coefficient."""
    column, row = left + RIGHT, top + LOWER
    index = first + row.to(tl.int64) * width + column
    exists = near & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    exists = exists & (index >= 0) & (index < num_values)  # shapes on a device were not checked
    along_x = right_part if RIGHT else 1 - right_part
    along_y = lower_part if LOWER else 1 - lower_part
    return index, exists, along_x, along_y


@triton.jit
def _softmax_terms(weights_ptr, inside, NUM_POINTS: tl.constexpr, BLOCK_N: tl.constexpr, COMPUTE: tl.constexpr):
    """The greatest of each row's logits, and the inverse of the sum of e^(logit - greatest)."""
    logits = _load_weights(weights_ptr, inside, NUM_POINTS, BLOCK_N, COMPUTE)
    logits = tl.where((tl.arange(0, BLOCK_N) < NUM_POINTS)[None, :], logits, float("-inf"))
    greatest = tl.max(logits, 1)
    return greatest, 1 / tl.sum(tl.exp(logits - greatest[:, None]), 1)


@triton.jit
def _load_weights(weights_ptr, inside, NUM_POINTS: tl.constexpr, BLOCK_N: tl.constexpr, COMPUTE: tl.constexpr):
    """The weights or logits of all points [M,N]."""
    n = tl.arange(0, BLOCK_N)
    mask = inside[:, None] & (n < NUM_POINTS)[None, :]
    return tl.load(weights_ptr[:, None] + n[None, :], mask=mask, other=0).to(COMPUTE)


_UNSPECIALIZED = ["num_queries", "num_values", *(f"size{k}" for k in range(_MAX_LEVELS))]


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def deformable_attention_fwd_kernel(
    value_ptr,  # [B,S,H,D]
    points_ptr,  # [B,Q,R,C]
    locations_ptr,  # [B,Q,H,N,2], or offsets from the points
    weights_ptr,  # [B,Q,H,N], or logits
    shapes_ptr,  # [L,2]
    out_ptr,  # [B,Q,H*D]
    num_queries,
    num_values,
    size0,
    size1,
    size2,
    size3,
    size4,
    size5,
    size6,
    size7,
    NUM_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    POINTS: tl.constexpr,  # of each level
    NUM_POINTS: tl.constexpr,
    COORDINATES: tl.constexpr,  # of the reference points; 0 where locations and weights are given
    SHARED: tl.constexpr,  # whether the levels have the same reference points
    OFFSET_SCALE: tl.constexpr,
    DISCRETE: tl.constexpr,
    ON_DEVICE: tl.constexpr,  # whether shapes_ptr has the levels' sizes
    COMPUTE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    image, row, inside = _rows(num_queries, NUM_HEADS, BLOCK_M)
    query, head = row // NUM_HEADS, row % NUM_HEADS
    row += image * num_queries * NUM_HEADS
    locations_ptr += row * (2 * NUM_POINTS)
    weights_ptr += row * NUM_POINTS
    d = tl.arange(0, BLOCK_D)[None, :]
    column = (d < WIDTH) & inside[:, None]
    value_ptr += image * num_values * (NUM_HEADS * WIDTH) + (head * WIDTH)[:, None] + d
    greatest, inverse_sum = tl.zeros((BLOCK_M,), COMPUTE), tl.zeros((BLOCK_M,), COMPUTE)
    if COORDINATES > 0:
        num_sets: tl.constexpr = 1 if SHARED else len(POINTS)
        points_ptr += (image * num_queries + query) * (num_sets * COORDINATES)
        greatest, inverse_sum = _softmax_terms(weights_ptr, inside, NUM_POINTS, BLOCK_N, COMPUTE)
    offset_scale = tl.full((BLOCK_M,), OFFSET_SCALE, COMPUTE)  # a constant would be rounded to float32
    total = tl.zeros((BLOCK_M, BLOCK_D), COMPUTE)
    first = image * 0
    n = 0
    for level in tl.static_range(len(POINTS)):
        height, width = _level_size(
            shapes_ptr, size0, size1, size2, size3, size4, size5, size6, size7, level, ON_DEVICE
        )
        center_x, center_y, box_width, box_height, finite = _load_point(
            points_ptr, inside, level, COORDINATES, SHARED, COMPUTE
        )
        for _ in range(POINTS[level]):
            x, y, weight, usable, _, _ = _load_sample(
                locations_ptr,
                weights_ptr,
                n,
                inside,
                center_x,
                center_y,
                box_width,
                box_height,
                finite,
                greatest,
                inverse_sum,
                offset_scale,
                height,
                width,
                POINTS[level],
                COORDINATES,
                COMPUTE,
            )
            left, top, right_part, lower_part, near = _cell(x * width, y * height, height, width, usable, DISCRETE)
            for right in tl.static_range(1 if DISCRETE else 2):
                for lower in tl.static_range(1 if DISCRETE else 2):
                    index, exists, along_x, along_y = _corner(
                        left, top, right_part, lower_part, near, first, height, width, num_values, right, lower
                    )
                    offset = (index * (NUM_HEADS * WIDTH))[:, None]
                    values = tl.load(value_ptr + offset, mask=column & exists[:, None], other=0).to(COMPUTE)
                    factor = tl.where(exists, weight * (along_x * along_y), 0)
                    total += factor[:, None] * values
            n += 1
        first += height.to(tl.int64) * width
    tl.store(out_ptr + row[:, None] * WIDTH + d, total, mask=column)


@triton.jit
def _fixed_point_scale(largest_grad_ptr, largest_weight_ptr, count):
    """A power of two that takes sums of up to ``count`` products of gradients and weights below 2^62, and its inverse.

    The inverse is NaN where a gradient or a weight is not finite.
    """
    bound = tl.load(largest_grad_ptr).to(tl.float32)
    if largest_weight_ptr is not None:
        bound *= tl.load(largest_weight_ptr).to(tl.float32)
    bound *= count
    exponent = (bound.to(tl.int32, bitcast=True) >> 23) - 126  # bound is below 2^exponent
    shift = tl.minimum(tl.maximum(61 - exponent, -126), 126)
    scale = ((127 + shift) << 23).to(tl.float32, bitcast=True)
    inverse = ((127 - shift) << 23).to(tl.float32, bitcast=True)
    return scale, tl.where(_is_finite(bound), inverse, float("nan"))


@triton.jit(do_not_specialize=[*_UNSPECIALIZED, "count"])
def deformable_attention_bwd_kernel(
    value_ptr,  # [B,S,H,D]
    points_ptr,  # [B,Q,R,C]
    locations_ptr,  # [B,Q,H,N,2], or offsets from the points
    weights_ptr,  # [B,Q,H,N], or logits
    shapes_ptr,  # [L,2]
    grad_ptr,  # [B,Q,H*D]
    largest_grad_ptr,  # [], for fixed point
    largest_weight_ptr,  # [], for fixed point and given weights
    grad_value_ptr,  # [B,S,H,D], float or fixed point, to which is added
    grad_points_ptr,  # [B,Q,H,R,C]
    grad_locations_ptr,  # [B,Q,H,N,2]
    grad_weights_ptr,  # [B,Q,H,N]
    num_queries,
    num_values,
    count,  # of products that may be added to one number
    size0,
    size1,
    size2,
    size3,
    size4,
    size5,
    size6,
    size7,
    NUM_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    POINTS: tl.constexpr,
    NUM_POINTS: tl.constexpr,
    COORDINATES: tl.constexpr,
    SHARED: tl.constexpr,
    OFFSET_SCALE: tl.constexpr,
    DISCRETE: tl.constexpr,
    ON_DEVICE: tl.constexpr,
    FIXED_POINT: tl.constexpr,
    WITH_POINTS: tl.constexpr,  # whether the gradient of the points is needed
    COMPUTE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    image, row, inside = _rows(num_queries, NUM_HEADS, BLOCK_M)
    query, head = row // NUM_HEADS, row % NUM_HEADS
    row += image * num_queries * NUM_HEADS
    locations_ptr += row * (2 * NUM_POINTS)
    grad_locations_ptr += row * (2 * NUM_POINTS)
    weights_ptr += row * NUM_POINTS
    grad_weights_ptr += row * NUM_POINTS
    d = tl.arange(0, BLOCK_D)[None, :]
    column = (d < WIDTH) & inside[:, None]
    grad = tl.load(grad_ptr + row[:, None] * WIDTH + d, mask=column, other=0).to(COMPUTE)
    cell = image * num_values * (NUM_HEADS * WIDTH) + (head * WIDTH)[:, None] + d
    if FIXED_POINT:
        scale, _ = _fixed_point_scale(largest_grad_ptr, largest_weight_ptr, count)
    num_sets: tl.constexpr = 1 if SHARED else len(POINTS)
    zero = tl.zeros((BLOCK_M,), COMPUTE)
    greatest, inverse_sum = zero, zero
    if COORDINATES > 0:
        points_ptr += (image * num_queries + query) * (num_sets * COORDINATES)
        if WITH_POINTS:
            grad_points_ptr += row * (num_sets * COORDINATES)
        greatest, inverse_sum = _softmax_terms(weights_ptr, inside, NUM_POINTS, BLOCK_N, COMPUTE)
    offset_scale = tl.full((BLOCK_M,), OFFSET_SCALE, COMPUTE)  # a constant would be rounded to float32
    all_points = tl.arange(0, BLOCK_N)[None, :]
    grad_weights = tl.zeros((BLOCK_M, BLOCK_N), COMPUTE)
    point_x, point_y, point_width, point_height = zero, zero, zero, zero
    first = image * 0
    n = 0
    for level in tl.static_range(len(POINTS)):
        height, width = _level_size(
            shapes_ptr, size0, size1, size2, size3, size4, size5, size6, size7, level, ON_DEVICE
        )
        center_x, center_y, box_width, box_height, finite = _load_point(
            points_ptr, inside, level, COORDINATES, SHARED, COMPUTE
        )
        for _ in range(POINTS[level]):
            x, y, weight, usable, offset_x, offset_y = _load_sample(
                locations_ptr,
                weights_ptr,
                n,
                inside,
                center_x,
                center_y,
                box_width,
                box_height,
                finite,
                greatest,
                inverse_sum,
                offset_scale,
                height,
                width,
                POINTS[level],
                COORDINATES,
                COMPUTE,
            )
            left, top, right_part, lower_part, near = _cell(x * width, y * height, height, width, usable, DISCRETE)
            grad_weight, grad_x, grad_y = zero, zero, zero
            for right in tl.static_range(1 if DISCRETE else 2):
                for lower in tl.static_range(1 if DISCRETE else 2):
                    index, exists, along_x, along_y = _corner(
                        left, top, right_part, lower_part, near, first, height, width, num_values, right, lower
                    )
                    offset = cell + (index * (NUM_HEADS * WIDTH))[:, None]
                    mask = column & exists[:, None]
                    values = tl.load(value_ptr + offset, mask=mask, other=0).to(COMPUTE)
                    product = tl.sum(grad * values, 1)
                    grad_weight += along_x * along_y * product
                    grad_x += along_y * product if right else -along_y * product
                    grad_y += along_x * product if lower else -along_x * product
                    added = tl.where(exists, weight * (along_x * along_y), 0)[:, None] * grad
                    if FIXED_POINT:
                        added = (added * scale).to(tl.int64)
                    tl.atomic_add(grad_value_ptr + offset, added, mask=mask, sem="relaxed")
            grad_weights = tl.where(all_points == n, grad_weight[:, None], grad_weights)
            if DISCRETE:
                grad_x, grad_y = zero, zero
            else:
                grad_x = tl.where(near, weight * grad_x * width, 0)  # of the location, in fractions of the level
                grad_y = tl.where(near, weight * grad_y * height, 0)
            to_x, to_y = grad_x, grad_y
            if COORDINATES == 2:
                to_x, to_y = grad_x / tl.maximum(width, 1), grad_y / tl.maximum(height, 1)
            if COORDINATES == 4:
                factor = offset_scale / POINTS[level]
                to_x = grad_x * tl.where(finite, box_width * factor, 0)
                to_y = grad_y * tl.where(finite, box_height * factor, 0)
            tl.store(grad_locations_ptr + 2 * n, to_x, mask=inside)
            tl.store(grad_locations_ptr + 2 * n + 1, to_y, mask=inside)
            if WITH_POINTS:
                point_x += grad_x
                point_y += grad_y
                if COORDINATES == 4:
                    point_width += grad_x * (offset_x * factor)
                    point_height += grad_y * (offset_y * factor)
            n += 1
        if WITH_POINTS and (not SHARED or level == len(POINTS) - 1):
            tl.store(grad_points_ptr, point_x, mask=inside)
            tl.store(grad_points_ptr + 1, point_y, mask=inside)
            if COORDINATES == 4:
                tl.store(grad_points_ptr + 2, point_width, mask=inside)
                tl.store(grad_points_ptr + 3, point_height, mask=inside)
            grad_points_ptr += COORDINATES
            point_x, point_y, point_width, point_height = zero, zero, zero, zero
        first += height.to(tl.int64) * width
    if COORDINATES > 0:
        logits = _load_weights(weights_ptr, inside, NUM_POINTS, BLOCK_N, COMPUTE)
        weights = tl.where(all_points < NUM_POINTS, tl.exp(logits - greatest[:, None]) * inverse_sum[:, None], 0)
        grad_weights = weights * (grad_weights - tl.sum(weights * grad_weights, 1)[:, None])
    mask = inside[:, None] & (all_points < NUM_POINTS)
    tl.store(grad_weights_ptr[:, None] + all_points, grad_weights, mask=mask)


@triton.jit(do_not_specialize=["size", "count"])
def fixed_point_to_float_kernel(
    fixed_ptr,  # int64 [N]
    largest_grad_ptr,  # []
    largest_weight_ptr,  # []
    out_ptr,  # [N]
    size,
    count,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    _, inverse = _fixed_point_scale(largest_grad_ptr, largest_weight_ptr, count)
    number = tl.load(fixed_ptr + index, mask=index < size, other=0).to(tl.float32)
    tl.store(out_ptr + index, number * inverse, mask=index < size)


def attend(
    value: Tensor,  # [B,S,H,D]
    points: Tensor | None,  # [B,Q,R,C], or None where locations and weights are given
    locations: Tensor,  # [B,Q,H,N,2], or offsets
    weights: Tensor,  # [B,Q,H,N], or logits
    shapes: SpatialShapes,
    points_per_level: list[int],
    offset_scale: float,
    method: str,
) -> Tensor:  # [B,Q,H*D]
    """Launch the forward kernel."""
    batch, num_values, num_heads, width = value.shape
    num_queries = locations.shape[1]
    shape = (batch, num_queries, num_heads * width)
    if not weights.numel() or not value.numel():
        return torch.zeros(shape, dtype=value.dtype, device=value.device)
    out = torch.empty(shape, dtype=value.dtype, device=value.device)
    options = _launch_options(value, points, locations, weights, points_per_level, offset_scale, method)
    block = _blocks(num_heads, width, sum(points_per_level), _FORWARD_TILE)
    table, sizes = _sizes(shapes, value.device)
    with launch_on(value):
        deformable_attention_fwd_kernel[_grid(batch, num_queries * num_heads, block)](
            value.contiguous(),
            None if points is None else points.contiguous(),
            locations.contiguous(),
            weights.contiguous(),
            table,
            out,
            num_queries,
            num_values,
            *sizes,
            ON_DEVICE=table is not None,
            **options,
            **block,
        )
    return out


def attend_backward(
    grad: Tensor,  # [B,Q,H*D]
    value: Tensor,  # [B,S,H,D]
    points: Tensor | None,  # [B,Q,R,C], or None where locations and weights are given
    locations: Tensor,  # [B,Q,H,N,2], or offsets
    weights: Tensor,  # [B,Q,H,N], or logits
    shapes: SpatialShapes,
    points_per_level: list[int],
    offset_scale: float,
    method: str,
    deterministic: bool,
    needs_points: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Launch the backward kernel, and with ``deterministic`` the conversion from fixed point.

    Returns:
        The gradients of value, points (None where it is not needed), locations and weights.
    """
    batch, num_values, num_heads, width = value.shape
    num_queries, num_points = locations.shape[1], sum(points_per_level)
    if not weights.numel() or not value.numel():
        grad_points = None if points is None else torch.zeros_like(points)
        return torch.zeros_like(value), grad_points, torch.zeros_like(locations), torch.zeros_like(weights)
    dtype = widest_dtype(value, locations, weights, *(() if points is None else (points,)))
    grad = grad.contiguous()
    largest_grad = largest_weight = None
    count = num_queries  # times a sum of weights, which is 1
    if deterministic:
        largest_grad = torch.linalg.vector_norm(grad, float("inf"))
        if points is None:
            largest_weight = torch.linalg.vector_norm(weights, float("inf"))
            count *= num_points
    grad_value = torch.zeros(value.shape, dtype=torch.int64 if deterministic else dtype, device=value.device)
    grad_locations = torch.empty(locations.shape, dtype=locations.dtype, device=value.device)
    grad_weights = torch.empty(weights.shape, dtype=weights.dtype, device=value.device)
    by_head = None
    if points is not None and needs_points:
        shape = (batch, num_queries, num_heads, *points.shape[2:])
        by_head = torch.empty(shape, dtype=dtype, device=value.device)
    options = _launch_options(value, points, locations, weights, points_per_level, offset_scale, method)
    block = _blocks(num_heads, width, num_points, _BACKWARD_TILE)
    table, sizes = _sizes(shapes, value.device)
    with launch_on(value):
        deformable_attention_bwd_kernel[_grid(batch, num_queries * num_heads, block)](
            value.contiguous(),
            None if points is None else points.contiguous(),
            locations.contiguous(),
            weights.contiguous(),
            table,
            grad,
            largest_grad,
            largest_weight,
            grad_value,
            by_head,
            grad_locations,
            grad_weights,
            num_queries,
            num_values,
            count,
            *sizes,
            ON_DEVICE=table is not None,
            FIXED_POINT=deterministic,
            WITH_POINTS=by_head is not None,
            **options,
            **block,
        )
        if deterministic:
            converted = torch.empty(value.shape, dtype=value.dtype, device=value.device)
            fixed_point_to_float_kernel[(triton.cdiv(value.numel(), _CONVERTED),)](
                grad_value, largest_grad, largest_weight, converted, value.numel(), count, BLOCK=_CONVERTED
            )
            grad_value = converted
    grad_points = None if by_head is None or points is None else by_head.sum(2).to(points.dtype)
    return grad_value.to(value.dtype), grad_points, grad_locations, grad_weights


def _launch_options(
    value: Tensor,
    points: Tensor | None,
    locations: Tensor,
    weights: Tensor,
    points_per_level: list[int],
    offset_scale: float,
    method: str,
) -> dict[str, Any]:
    """Compile-time constants of both kernels."""
    return {
        "NUM_HEADS": value.shape[2],
        "WIDTH": value.shape[3],
        "POINTS": tuple(points_per_level),
        "NUM_POINTS": sum(points_per_level),
        "COORDINATES": 0 if points is None else points.shape[3],
        "SHARED": points is not None and points.shape[2] == 1,
        "OFFSET_SCALE": offset_scale,
        "DISCRETE": method == "discrete",
        "COMPUTE": triton_dtype(widest_dtype(value, locations, weights, *(() if points is None else (points,)))),
    }


def _blocks(num_heads: int, width: int, num_points: int, tile: int) -> dict[str, int]:
    block_d = triton.next_power_of_2(width)
    return {
        "BLOCK_M": max(1, min(128, tile // block_d)),
        "BLOCK_D": block_d,
        "BLOCK_N": triton.next_power_of_2(num_points),
    }


def _grid(batch: int, num_rows: int, block: dict[str, int]) -> tuple[int]:
    return (batch * triton.cdiv(num_rows, block["BLOCK_M"]),)


def _sizes(shapes: SpatialShapes, device: torch.device) -> tuple[Tensor | None, list[int]]:
    """Return the levels' sizes as a tensor on the device, or None, and as arguments of the kernels."""
    no_sizes = [0] * _MAX_LEVELS
    if shapes.tensor is not None:
        return shapes.tensor.to(device, non_blocking=True), no_sizes
    if shapes.num_levels > _MAX_LEVELS:
        return torch.tensor(shapes.sizes).to(device, non_blocking=True), no_sizes
    packed = [height << 32 | width for height, width, _ in shapes.levels()]
    return None, [*packed, *no_sizes[len(packed) :]]

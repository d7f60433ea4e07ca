"""All assignment problems of a training step in one launch, one program for each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from detr_fast.kernels import LARGEST_PROBLEM, launch_on
from detr_fast.kernels.faults import (
    INFEASIBLE_COST,
    INVALID_COST,
    NOT_A_TARGET,
    TOO_MANY_TARGETS,
    report_fault,
    status_word,
)

_INVALID: tl.constexpr = tl.constexpr(INVALID_COST)
_INFEASIBLE: tl.constexpr = tl.constexpr(INFEASIBLE_COST)
_TOO_MANY: tl.constexpr = tl.constexpr(TOO_MANY_TARGETS)
_NOT_A_TARGET: tl.constexpr = tl.constexpr(NOT_A_TARGET)


@triton.jit
def _pick(place, wanted, values):
    """The value at one place of a vector that lives in registers."""
    return tl.sum(tl.where(place == wanted, values, tl.zeros_like(values)), 0)


@triton.jit
def _cheapest_columns(
    cost_ptr, row_stride, col_stride, num_rows, num_cols, BLOCK_ROWS: tl.constexpr, CHUNK: tl.constexpr
):
    """Each row's least cost, the first column that has it (-1: all forbidden), and whether a cost is invalid."""
    row = tl.arange(0, BLOCK_ROWS)
    least = tl.full([BLOCK_ROWS], float("inf"), cost_ptr.dtype.element_ty)
    least_col = tl.full([BLOCK_ROWS], -1, tl.int32)
    invalid = tl.zeros([BLOCK_ROWS], tl.int32)
    for start in range(0, num_cols, CHUNK):
        col = start + tl.arange(0, CHUNK)
        inside = (row[:, None] < num_rows) & (col[None, :] < num_cols)
        pointers = cost_ptr + row[:, None] * row_stride + col[None, :] * col_stride
        cost = tl.load(pointers, mask=inside, other=float("inf"))  # [BLOCK_ROWS,CHUNK]
        wrong = (cost != cost) | (cost == -float("inf"))
        invalid = tl.maximum(invalid, tl.max(wrong.to(tl.int32), 1))
        chunk_least, place = tl.min(cost, 1, return_indices=True)
        better = chunk_least < least
        least = tl.where(better, chunk_least, least)
        least_col = tl.where(better, start + place, least_col)
    return least.to(tl.float64), least_col, invalid


@triton.jit
def _mark_unused(index_ptr, start, end):
    """-1 for rows that are kept for more targets than there are."""
    while start < end:
        row = start + tl.arange(0, 64)
        tl.store(index_ptr + row, tl.full([64], -1, tl.int64), mask=row < end)
        start += 64


@triton.jit(do_not_specialize=["num_images", "num_groups", "num_targets", "num_queries"])
def linear_sum_assignment_kernel(
    cost_ptr,  # [L,T,G*Q]
    offsets_ptr,  # int32 [B+1]
    index_ptr,  # int64 [L,G,T]
    status_ptr,  # int64 [1]
    num_images,
    num_groups,
    num_targets,
    num_queries,  # of one group
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Shortest augmenting paths in SciPy's order; all state stays in registers.

    A vector is read at a place by a masked sum. For the rows of the search tree it is the distance at which
    they entered that is kept: their duals then need nothing from the columns.
    """
    problem = tl.program_id(0)
    image = problem % num_images
    group = problem // num_images % num_groups
    layer = problem // num_images // num_groups
    first_target = tl.load(offsets_ptr + image)
    size = tl.load(offsets_ptr + image + 1) - first_target
    width = num_groups * num_queries
    cost_ptr += (layer.to(tl.int64) * num_targets + first_target) * width + group * num_queries
    index_ptr += (layer.to(tl.int64) * num_groups + group) * num_targets
    if image == num_images - 1:
        _mark_unused(index_ptr, first_target + size, num_targets)
    index_ptr += first_target

    # SciPy solves for the smaller side, and for the queries where the sides are equal.
    by_target = size < num_queries
    num_rows = tl.minimum(size, num_queries)
    num_cols = tl.maximum(size, num_queries)
    row_stride = tl.where(by_target, width, 1)
    col_stride = tl.where(by_target, 1, width)

    row = tl.arange(0, BLOCK_ROWS)
    col = tl.arange(0, BLOCK_COLS)
    least, least_col, invalid = _cheapest_columns(
        cost_ptr, row_stride, col_stride, num_rows, num_cols, BLOCK_ROWS, CHUNK
    )
    valid = tl.max(invalid, 0) == 0
    fits = (num_rows <= BLOCK_ROWS) & (num_cols <= BLOCK_COLS)
    feasible = valid & fits

    INF: tl.constexpr = float("inf")
    KEY: tl.constexpr = tl.int32 if 2 * BLOCK_COLS * BLOCK_COLS * BLOCK_ROWS <= 2**31 else tl.int64
    row_dual = tl.zeros([BLOCK_ROWS], tl.float64)
    col_dual = tl.zeros([BLOCK_COLS], tl.float64)
    col_of_row = tl.full([BLOCK_ROWS], -1, tl.int32)
    row_of_col = tl.full([BLOCK_COLS], -1, tl.int32)
    duals_fell_only = feasible
    start_row = 0
    while (start_row < num_rows) & feasible:
        # Column duals are 0 where free and otherwise only fall, so a row's cheapest column, if free, is nearest.
        sink = _pick(row, start_row, least_col)
        if (sink >= 0) & duals_fell_only:
            row_dual = tl.where(row == start_row, least, row_dual)
            row_of_col = tl.where(col == sink, start_row, row_of_col)
            col_of_row = tl.where(row == start_row, sink, col_of_row)
        else:
            # A column's place in the list that SciPy scans, which starts from the last column; -1: closed.
            place = tl.where(col < num_cols, num_cols - 1 - col, -1)
            num_open = num_cols
            distance = tl.full([BLOCK_COLS], INF, tl.float64)
            parent = tl.zeros([BLOCK_COLS], tl.int32)
            entry = tl.where(row == start_row, 0.0, tl.full([BLOCK_ROWS], INF, tl.float64))
            reached = tl.zeros([], tl.float64)
            scanned = start_row
            searching = feasible
            while searching:
                base = _pick(row, scanned, row_dual)
                cost = tl.load(cost_ptr + scanned * row_stride + col * col_stride, mask=place >= 0, other=INF)
                # The order of these operations decides how near-ties round.
                through = reached + cost.to(tl.float64) - base - col_dual
                closer = (through < distance) & (place >= 0)
                distance = tl.where(closer, through, distance)
                parent = tl.where(closer, scanned, parent)
                open_distance = tl.where(place >= 0, distance, INF)
                reached = tl.min(open_distance, 0)
                # Among equals the last free column of the list, else the first column.
                rank = tl.where(row_of_col < 0, BLOCK_COLS + place, BLOCK_COLS - 1 - place)
                key = (rank.to(KEY) * BLOCK_COLS + col) * BLOCK_ROWS + tl.maximum(row_of_col, 0)
                key = tl.where((place >= 0) & (open_distance == reached), key, -1)
                nearest = tl.max(key, 0)
                sink = (nearest // BLOCK_ROWS % BLOCK_COLS).to(tl.int32)
                nearest_rank = (nearest // BLOCK_ROWS // BLOCK_COLS).to(tl.int32)
                is_free = nearest_rank >= BLOCK_COLS
                nearest_place = tl.where(is_free, nearest_rank - BLOCK_COLS, BLOCK_COLS - 1 - nearest_rank)
                scanned = tl.where(is_free, -1, (nearest % BLOCK_ROWS).to(tl.int32))
                num_open -= 1
                place = tl.where(place == num_open, nearest_place, place)
                place = tl.where(col == sink, -1, place)
                feasible = reached < INF
                searching = feasible & (scanned >= 0)
                entry = tl.where(row == scanned, reached, entry)
            if feasible:
                row_dual = tl.where(entry < INF, row_dual + (reached - entry), row_dual)
                fall = tl.where((place < 0) & (col < num_cols), reached - distance, 0.0)
                col_dual -= fall
                duals_fell_only = duals_fell_only & (tl.min(fall, 0) >= 0)
                path_col = sink
                path_row = tl.full([], -1, tl.int32)
                while path_row != start_row:
                    path_row = _pick(col, path_col, parent)
                    row_of_col = tl.where(col == path_col, path_row, row_of_col)
                    next_col = _pick(row, path_row, col_of_row)
                    col_of_row = tl.where(row == path_row, path_col, col_of_row)
                    path_col = next_col
        least_col = tl.where(least_col == sink, -1, least_col)
        start_row += 1

    if fits == 0:
        report_fault(status_ptr, layer, group, image, _NOT_A_TARGET, _TOO_MANY)
    elif valid == 0:
        first_invalid = tl.min(tl.where(invalid != 0, row, BLOCK_ROWS), 0)
        report_fault(status_ptr, layer, group, image, tl.where(by_target, first_invalid, _NOT_A_TARGET), _INVALID)
    elif feasible == 0:
        report_fault(status_ptr, layer, group, image, _NOT_A_TARGET, _INFEASIBLE)
        col_of_row = tl.full([BLOCK_ROWS], -1, tl.int32)
        row_of_col = tl.full([BLOCK_COLS], -1, tl.int32)

    first_query = group * num_queries
    query = tl.where(col_of_row >= 0, col_of_row + first_query, -1)
    tl.store(index_ptr + row, query.to(tl.int64), mask=row < tl.where(by_target, num_rows, 0))
    query = tl.where(row_of_col >= 0, row_of_col + first_query, -1)
    tl.store(index_ptr + col, query.to(tl.int64), mask=col < tl.where(by_target, 0, num_cols))


def batch_linear_sum_assignment(
    cost: Tensor,  # [L,T,Q]
    offsets: Tensor,  # int32 [B+1], on the device of cost
    most: int,
    groups: int,
    mark: bool = False,
) -> Tensor:  # int64 [L,G,T]
    """The query of each target, -1 for rows that are no target's. Never waits for the device.

    The sizes are read on the device, so that a captured CUDA graph serves all whose largest is not above ``most``.

    A problem whose cost is invalid or infeasible is given -1 throughout, and unless ``mark`` is set
    :func:`raise_faults` raises.
    """
    num_layers, num_targets, num_queries = cost.shape[0], cost.shape[1], cost.shape[2] // groups
    index_shape = (num_layers, groups, num_targets)
    if 0 in (*index_shape, num_queries):
        return torch.full(index_shape, -1, dtype=torch.int64, device=cost.device)
    if max(num_queries, most) > LARGEST_PROBLEM:
        raise ValueError(
            f"problems of up to {LARGEST_PROBLEM} queries or targets fit, got {max(num_queries, most)}; "
            'pass backend="cpp"'
        )
    if cost.dtype not in (torch.float32, torch.float64):
        cost = cost.to(torch.float32 if cost.is_floating_point() else torch.float64)
    num_images = offsets.shape[0] - 1
    index = torch.empty(index_shape, dtype=torch.int64, device=cost.device)
    status = torch.empty(1, dtype=torch.int64, device=cost.device) if mark else status_word(cost.device)
    with launch_on(cost):
        linear_sum_assignment_kernel[(num_layers * groups * num_images,)](
            cost.contiguous(),
            offsets,
            index,
            status,
            num_images,
            groups,
            num_targets,
            num_queries,
            **launch_options(most, num_queries),
        )
    return index


def launch_options(largest_image: int, num_queries: int) -> dict[str, int]:
    """Block sizes and warps for the largest problem; the next power of two, so that few variants are compiled."""
    block_rows = max(16, triton.next_power_of_2(min(largest_image, num_queries)))
    block_cols = max(64, triton.next_power_of_2(max(largest_image, num_queries)))
    num_warps = min(16, max(1, block_cols // 128))
    chunk = max(1, min(block_cols, 256 * num_warps // block_rows))
    return {"BLOCK_ROWS": block_rows, "BLOCK_COLS": block_cols, "CHUNK": chunk, "num_warps": num_warps}

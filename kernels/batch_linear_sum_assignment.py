"""All assignment problems of a training step in one launch, one program for each.

The steps of a program are sequential, and the host is faster at each of them; but the host solves problem after
problem, and the training step waits for it. So many problems, or small ones, are solved on the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from detr_fast.ops.faults import INFEASIBLE_COST, INVALID_COST, NOT_A_TARGET, TOO_MANY_TARGETS, status_word
from detr_fast.ops.targets import offsets_of

from .faults import report_fault
from .launch import launch_on

if TYPE_CHECKING:
    from detr_fast.ops.batch_linear_sum_assignment import Work

LARGEST_PROBLEM = 4096  # queries or targets; the state of more does not fit into a program's registers

# Targets of the largest image, and the number of problems from which the device is faster than the C++ solver. An
# estimate from the host's measured times and 0.7 us for each step of a program; the rows "crossover" of the benchmark
# report measure it.
_CROSSOVER = ((64, 1), (128, 2), (256, 4), (1024, 16), (LARGEST_PROBLEM, 64))

_INVALID: tl.constexpr = tl.constexpr(INVALID_COST)
_INFEASIBLE: tl.constexpr = tl.constexpr(INFEASIBLE_COST)
_TOO_MANY: tl.constexpr = tl.constexpr(TOO_MANY_TARGETS)
_NOT_A_TARGET: tl.constexpr = tl.constexpr(NOT_A_TARGET)


@triton.jit
def _pick(index, wanted, values):
    """One element of a vector that is kept in registers."""
    return tl.sum(tl.where(index == wanted, values, tl.zeros_like(values)), 0)


@triton.jit
def _cheapest_columns(
    cost_ptr, row_stride, col_stride, num_rows, num_cols, BLOCK_ROWS: tl.constexpr, CHUNK: tl.constexpr
):
    """The least cost of each row, its first column (-1: all are forbidden), and whether a cost is invalid."""
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
        chunk_least, chunk_col = tl.min(cost, 1, return_indices=True)
        better = chunk_least < least
        least = tl.where(better, chunk_least, least)
        least_col = tl.where(better, start + chunk_col, least_col)
    return least.to(tl.float64), least_col, invalid


@triton.jit
def _mark_unused(index_ptr, start, end):
    """Store -1 for the rows of a padded batch that belong to no target."""
    while start < end:
        row = start + tl.arange(0, 64)
        tl.store(index_ptr + row, tl.full([64], -1, tl.int64), mask=row < end)
        start += 64


@triton.jit(do_not_specialize=["num_images", "num_groups", "num_targets", "num_queries"])
def batch_linear_sum_assignment_kernel(
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
    """Shortest augmenting paths in SciPy's order of operations; all state stays in registers.

    An element of a vector is read by a masked sum. For the rows of the search tree the distance at which they entered
    it is kept, so that the update of their duals needs nothing from the columns.
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
        # Duals of unassigned columns are 0, others only fall: a row's cheapest column, if unassigned, is nearest.
        sink = _pick(row, start_row, least_col)
        if (sink >= 0) & duals_fell_only:
            row_dual = tl.where(row == start_row, least, row_dual)
            row_of_col = tl.where(col == sink, start_row, row_of_col)
            col_of_row = tl.where(row == start_row, sink, col_of_row)
        else:
            # Position of a column in the list that SciPy scans, which starts from the last column; -1: visited.
            position = tl.where(col < num_cols, num_cols - 1 - col, -1)
            num_open = num_cols
            distance = tl.full([BLOCK_COLS], INF, tl.float64)
            parent = tl.zeros([BLOCK_COLS], tl.int32)
            entry = tl.where(row == start_row, 0.0, tl.full([BLOCK_ROWS], INF, tl.float64))
            reached = tl.zeros([], tl.float64)
            scanned = start_row
            searching = feasible
            while searching:
                base = _pick(row, scanned, row_dual)
                cost = tl.load(cost_ptr + scanned * row_stride + col * col_stride, mask=position >= 0, other=INF)
                # The order of these operations decides how near-ties round.
                through = reached + cost.to(tl.float64) - base - col_dual
                closer = (through < distance) & (position >= 0)
                distance = tl.where(closer, through, distance)
                parent = tl.where(closer, scanned, parent)
                open_distance = tl.where(position >= 0, distance, INF)
                reached = tl.min(open_distance, 0)
                # Among equals the last unassigned column of the list, else the first column.
                rank = tl.where(row_of_col < 0, BLOCK_COLS + position, BLOCK_COLS - 1 - position)
                key = (rank.to(KEY) * BLOCK_COLS + col) * BLOCK_ROWS + tl.maximum(row_of_col, 0)
                key = tl.where((position >= 0) & (open_distance == reached), key, -1)
                nearest = tl.max(key, 0)
                sink = (nearest // BLOCK_ROWS % BLOCK_COLS).to(tl.int32)
                nearest_rank = (nearest // BLOCK_ROWS // BLOCK_COLS).to(tl.int32)
                is_free = nearest_rank >= BLOCK_COLS
                nearest_position = tl.where(is_free, nearest_rank - BLOCK_COLS, BLOCK_COLS - 1 - nearest_rank)
                scanned = tl.where(is_free, -1, (nearest % BLOCK_ROWS).to(tl.int32))
                num_open -= 1
                position = tl.where(position == num_open, nearest_position, position)
                position = tl.where(col == sink, -1, position)
                feasible = reached < INF
                searching = feasible & (scanned >= 0)
                entry = tl.where(row == scanned, reached, entry)
            if feasible:
                row_dual = tl.where(entry < INF, row_dual + (reached - entry), row_dual)
                fall = tl.where((position < 0) & (col < num_cols), reached - distance, 0.0)
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


batch_linear_sum_assignment_lacks = frozenset({"duals"})


def batch_linear_sum_assignment_is_fastest(work: Work) -> bool:
    """Whether these problems are solved faster here than by the C++ solver on the host."""
    if max(work.max_targets, work.queries) > LARGEST_PROBLEM:
        return False
    smaller = min(work.max_targets, work.queries)
    return next(work.problems >= minimum for targets, minimum in _CROSSOVER if smaller <= targets)


def batch_linear_sum_assignment(
    cost: Tensor,  # [L,T,Q]
    sizes: list[int],
    offsets: Tensor | None,  # int32 [B+1], on the device of cost
    max_targets: int,
    groups: int,
    num_threads: int,
    return_duals: bool,
    on_error: str,
) -> list[Tensor]:
    """Compute the query of each target, int64 [L,G,T], -1 for rows of no target, without synchronization.

    The sizes are read on the device, so that a captured CUDA graph serves all whose maximum is at most
    ``max_targets``. A problem whose cost is invalid or infeasible has -1 for all its targets; unless ``on_error`` is
    "mark", :func:`detr_fast.raise_faults` raises.
    """
    num_layers, num_targets, num_queries = cost.shape[0], cost.shape[1], cost.shape[2] // groups
    index_shape = (num_layers, groups, num_targets)
    if 0 in (*index_shape, num_queries):
        return [torch.full(index_shape, -1, dtype=torch.int64, device=cost.device)]
    if max(num_queries, max_targets) > LARGEST_PROBLEM:
        raise ValueError(
            f"the Triton solver is limited to {LARGEST_PROBLEM} queries and targets of an image, got "
            f'{max(num_queries, max_targets)}; pass backend="cpp"'
        )
    if cost.dtype not in (torch.float32, torch.float64):
        cost = cost.to(torch.float32 if cost.is_floating_point() else torch.float64)
    if offsets is None:
        offsets = offsets_of(sizes, cost.device)
    num_images = offsets.shape[0] - 1
    index = torch.empty(index_shape, dtype=torch.int64, device=cost.device)
    # A word of its own takes the faults of problems that are marked in the result.
    marked = on_error == "mark"
    status = torch.empty(1, dtype=torch.int64, device=cost.device) if marked else status_word(cost.device)
    with launch_on(cost):
        batch_linear_sum_assignment_kernel[(num_layers * groups * num_images,)](
            cost.contiguous(),
            offsets,
            index,
            status,
            num_images,
            groups,
            num_targets,
            num_queries,
            **_launch_options(max_targets, num_queries),
        )
    return [index]


def _launch_options(max_targets: int, num_queries: int) -> dict[str, int]:
    """Block sizes and warps for the largest problem; powers of two, so that few variants are compiled."""
    block_rows = max(16, triton.next_power_of_2(min(max_targets, num_queries)))
    block_cols = max(64, triton.next_power_of_2(max(max_targets, num_queries)))
    num_warps = min(16, max(1, block_cols // 128))
    chunk = max(1, min(block_cols, 256 * num_warps // block_rows))
    return {"BLOCK_ROWS": block_rows, "BLOCK_COLS": block_cols, "CHUNK": chunk, "num_warps": num_warps}

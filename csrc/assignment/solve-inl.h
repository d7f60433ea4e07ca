// One assignment problem, from its costs to SciPy's answer.
// A copy of the matrix with contiguous rows, each padded with +inf.
#include <cstdint>

#include "assignment/arena.h"
#include "assignment/matrix.h"
#include "common/checkpoint.h"

#if defined(DETR_FAST_ASSIGNMENT_SOLVE_INL_H) == defined(DETR_FAST_TOGGLE)
#ifdef DETR_FAST_ASSIGNMENT_SOLVE_INL_H
#undef DETR_FAST_ASSIGNMENT_SOLVE_INL_H
#else
#define DETR_FAST_ASSIGNMENT_SOLVE_INL_H
#endif

#include "assignment/jonker_volgenant-inl.h"
#include "assignment/scan-inl.h"
#include "assignment/scipy_order-inl.h"
#include "assignment/simd-inl.h"
#include "assignment/uniqueness-inl.h"
#include "common/target-inl.h"

DETR_FAST_BEFORE_NAMESPACE();
namespace detr_fast::DETR_FAST_NAMESPACE {

template <typename T>
RowMatrix<T> copy_rows(const MatrixView<T>& cost, Arena& arena, Checkpoint& checkpoint) {
  const int64_t pitch = padded(cost.cols);
  auto* copy = static_cast<T*>(arena.take(cost.rows * pitch, sizeof(T)));
  if (cost.row_stride == 1 && cost.col_stride != 1) {
    for (int64_t j = 0; j < cost.cols; j += kTile) {
      checkpoint.count(kTile * cost.rows);
      for (int64_t i = 0; i < cost.rows; i += kTile) {
        const int64_t lanes = cost.rows - i < kTile ? cost.rows - i : kTile;
        transpose_tile(cost.data + i + j * cost.col_stride, cost.col_stride, cost.cols - j, lanes, copy + i * pitch + j,
                       pitch);
      }
    }
    return {copy, cost.rows, cost.cols, pitch};
  }
  for (int64_t i = 0; i < cost.rows; ++i) {
    checkpoint.count(pitch);
    const T* row = cost.data + i * cost.row_stride;
    for (int64_t j = 0; j < cost.cols; ++j) copy[i * pitch + j] = row[j * cost.col_stride];
    for (int64_t j = cost.cols; j < pitch; ++j) copy[i * pitch + j] = static_cast<T>(kInfinity);
  }
  return {copy, cost.rows, cost.cols, pitch};
}

// The matrix has at most as many rows as columns.
template <typename T>
Status solve_rows(const MatrixView<T>& cost, const Assignment& out, Arena& arena, Checkpoint& checkpoint) {
  const bool padding = JonkerVolgenant<T>::is_wide(cost.rows, cost.cols);
  const bool in_place = cost.col_stride == 1 && !padding;
  const RowMatrix<T> rows =
      in_place ? RowMatrix<T>{cost.data, cost.rows, cost.cols, cost.row_stride} : copy_rows(cost, arena, checkpoint);
  checkpoint.count(cost.rows * cost.cols);
  if (sums_fit(rows)) {
    JonkerVolgenant<T> solver(rows, out, arena, checkpoint);
    if (solver.solve(out) && UniquenessCertificate<T>(solver, rows, arena).holds()) return Status::kSolved;
  }
  return SciPyOrder<T>(rows, out, arena, checkpoint).solve();
}

template Status solve_rows(const MatrixView<float>&, const Assignment&, Arena&, Checkpoint&);
template Status solve_rows(const MatrixView<double>&, const Assignment&, Arena&, Checkpoint&);

}  // namespace detr_fast::DETR_FAST_NAMESPACE
DETR_FAST_AFTER_NAMESPACE();

#endif

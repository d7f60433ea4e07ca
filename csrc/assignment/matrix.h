// The plain data that travels between files compiled for different instruction sets: no code, no templates of std.
#pragma once

#include <cstddef>
#include <cstdint>

namespace detr_fast {

constexpr int64_t kNone = -1;

enum class Status { kSolved, kInvalid, kInfeasible };

// A matrix somewhere in memory; strides count elements and may be anything.
template <typename T>
struct MatrixView {
  const T* data;
  int64_t rows, cols;
  std::ptrdiff_t row_stride, col_stride;
};

// A matrix whose rows are contiguous, with at most as many rows as columns: each row is given a column.
template <typename T>
struct Rows {
  const T* data;
  int64_t rows, cols;
  std::ptrdiff_t stride;
};

// Where a solver writes, all of it provided by the caller. Duals: row + column <= cost; a column that is not
// assigned has 0, and no column more where there are more columns than rows.
struct Assignment {
  int64_t* column_of_row;  // [rows]
  double* row_dual;        // [rows]
  double* column_dual;     // [cols]
};

}  // namespace detr_fast

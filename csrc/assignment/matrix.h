// The plain data that is passed between files compiled for different instruction sets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

namespace detr_fast {

constexpr int64_t kNone = -1;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

enum class Status { kSolved, kInvalid, kInfeasible };

// A matrix anywhere in memory; strides count elements and may have any value.
template <typename T>
struct MatrixView {
  const T* data;
  int64_t rows, cols;
  std::ptrdiff_t row_stride, col_stride;
};

// A matrix with contiguous rows, and at most as many rows as columns: each row is assigned a column.
template <typename T>
struct RowMatrix {
  const T* data;
  int64_t rows, cols;
  std::ptrdiff_t stride;

  const T* row(int64_t i) const { return data + i * stride; }
};

// The memory that a solver writes, provided by the caller. The duals satisfy row + column <= cost; the dual of an
// unassigned column is 0, and no dual of a column exceeds 0 where there are more columns than rows.
struct Assignment {
  int64_t* column_of_row;  // [rows]
  double* row_dual;        // [rows]
  double* column_dual;     // [cols], or null
};

}  // namespace detr_fast

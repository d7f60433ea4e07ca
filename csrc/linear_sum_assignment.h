// Rectangular linear sum assignment by shortest augmenting paths, ties broken as SciPy breaks them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace detr_fast {

// A matrix somewhere in memory; strides count elements and may be anything.
template <typename T>
struct MatrixView {
  const T* data;
  int64_t rows, cols;
  std::ptrdiff_t row_stride, col_stride;

  T operator()(int64_t i, int64_t j) const { return data[i * row_stride + j * col_stride]; }
  MatrixView transposed() const { return {data, cols, rows, col_stride, row_stride}; }
};

enum class Status { kSolved, kInvalid, kInfeasible };

// Solves one matrix after another; what it allocates it keeps for the next.
class AssignmentSolver {
 public:
  // Columns of least total cost for the rows of `cost`, which has at most as many rows as columns.
  // On kSolved column_of_row() holds them; on kInvalid invalid_row() is a row with a NaN or -inf.
  template <typename T>
  Status solve(const MatrixView<T>& cost);

  const std::vector<int64_t>& column_of_row() const { return column_of_row_; }
  int64_t invalid_row() const { return invalid_row_; }

 private:
  void reset(int64_t rows, int64_t cols);
  template <typename T>
  bool find_invalid(const MatrixView<T>& cost);
  template <typename T>
  int64_t shortest_path(const MatrixView<T>& cost, int64_t start, double* length);
  void update_duals(int64_t start, double length);
  void augment(int64_t start, int64_t sink);

  std::vector<double> row_dual_, col_dual_, distance_;
  std::vector<int64_t> column_of_row_, row_of_column_, parent_;
  std::vector<int64_t> open_;            // columns outside the search tree, in scan order
  std::vector<int64_t> scanned_rows_, closed_cols_;  // the search tree
  int64_t invalid_row_ = -1;
};

}  // namespace detr_fast

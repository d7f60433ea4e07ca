// The algorithm is that of D. F. Crouse, "On implementing 2D rectangular assignment algorithms",
// IEEE Transactions on Aerospace and Electronic Systems 52(4), 2016. Where several optima exist the answer
// depends on the order of the scan and on how equals are ranked; both follow SciPy.
#include "linear_sum_assignment.h"

#include <cmath>
#include <limits>
#include <utility>

namespace detr_fast {

namespace {
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kNone = -1;
}  // namespace

template <typename T>
Status AssignmentSolver::solve(const MatrixView<T>& cost) {
  reset(cost.rows, cost.cols);
  if (find_invalid(cost)) return Status::kInvalid;
  for (int64_t row = 0; row < cost.rows; ++row) {
    double length = 0.0;
    const int64_t sink = shortest_path(cost, row, &length);
    if (sink == kNone) return Status::kInfeasible;
    update_duals(row, length);
    augment(row, sink);
  }
  return Status::kSolved;
}

void AssignmentSolver::reset(int64_t rows, int64_t cols) {
  row_dual_.assign(rows, 0.0);
  col_dual_.assign(cols, 0.0);
  distance_.resize(cols);
  column_of_row_.assign(rows, kNone);
  row_of_column_.assign(cols, kNone);
  parent_.resize(cols);
  open_.resize(cols);
  scanned_rows_.reserve(rows);
  closed_cols_.reserve(rows);
  invalid_row_ = kNone;
}

template <typename T>
bool AssignmentSolver::find_invalid(const MatrixView<T>& cost) {
  for (int64_t i = 0; i < cost.rows; ++i) {
    for (int64_t j = 0; j < cost.cols; ++j) {
      const double value = static_cast<double>(cost(i, j));
      if (std::isnan(value) || value == -kInfinity) {
        invalid_row_ = i;
        return true;
      }
    }
  }
  return false;
}

// Grows a search tree from a free row until the nearest column outside it is free, and returns that column.
template <typename T>
int64_t AssignmentSolver::shortest_path(const MatrixView<T>& cost, int64_t start, double* length) {
  const int64_t cols = cost.cols;
  for (int64_t k = 0; k < cols; ++k) open_[k] = cols - 1 - k;  // SciPy scans from the last column down
  distance_.assign(cols, kInfinity);
  scanned_rows_.clear();
  closed_cols_.clear();

  int64_t num_open = cols;
  int64_t row = start;
  double reached = 0.0;
  while (true) {
    scanned_rows_.push_back(row);
    const double base = row_dual_[row];
    double nearest = kInfinity;
    int64_t nearest_place = kNone;
    for (int64_t k = 0; k < num_open; ++k) {
      const int64_t col = open_[k];
      // The order of these operations decides how near-ties round.
      const double through = reached + static_cast<double>(cost(row, col)) - base - col_dual_[col];
      if (through < distance_[col]) {
        distance_[col] = through;
        parent_[col] = row;
      }
      const bool tie_won = distance_[col] == nearest && row_of_column_[col] == kNone;
      if (distance_[col] < nearest || tie_won) {
        nearest = distance_[col];
        nearest_place = k;
      }
    }
    if (nearest == kInfinity) return kNone;

    reached = nearest;
    const int64_t col = open_[nearest_place];
    open_[nearest_place] = open_[--num_open];
    closed_cols_.push_back(col);
    if (row_of_column_[col] == kNone) {
      *length = reached;
      return col;
    }
    row = row_of_column_[col];
  }
}

void AssignmentSolver::update_duals(int64_t start, double length) {
  for (const int64_t row : scanned_rows_) {
    row_dual_[row] += row == start ? length : length - distance_[column_of_row_[row]];
  }
  for (const int64_t col : closed_cols_) col_dual_[col] -= length - distance_[col];
}

void AssignmentSolver::augment(int64_t start, int64_t sink) {
  int64_t col = sink;
  int64_t row = kNone;
  while (row != start) {
    row = parent_[col];
    row_of_column_[col] = row;
    std::swap(column_of_row_[row], col);
  }
}

template Status AssignmentSolver::solve(const MatrixView<float>&);
template Status AssignmentSolver::solve(const MatrixView<double>&);

}  // namespace detr_fast

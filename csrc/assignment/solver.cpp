#include "assignment/solver.h"

#include <algorithm>

#define DETR_FAST_TARGET_INCLUDE "assignment/solve-inl.h"
#include "common/foreach_target.h"

namespace detr_fast {

namespace {

thread_local AssignmentSolver solver_of_thread;
thread_local bool is_lent = false;

}  // namespace

ThreadSolver::ThreadSolver() : solver_(&solver_of_thread) {
  if (is_lent) {
    own_ = std::make_unique<AssignmentSolver>();
    solver_ = own_.get();
  }
  is_lent = true;
}

ThreadSolver::~ThreadSolver() { is_lent = own_ != nullptr; }

template <typename T>
Status AssignmentSolver::solve(const MatrixView<T>& cost, Checkpoint& checkpoint, bool with_duals) {
  arena_.clear();
  by_column_ = cost.cols < cost.rows;
  const auto transposed = MatrixView<T>{cost.data, cost.cols, cost.rows, cost.col_stride, cost.row_stride};
  const MatrixView<T> matrix = by_column_ ? transposed : cost;
  size_ = matrix.rows;
  if (size_ == 0) return Status::kSolved;
  assignment_.column_of_row = static_cast<int64_t*>(arena_.take(matrix.rows, sizeof(int64_t)));
  assignment_.row_dual = static_cast<double*>(arena_.take(matrix.rows, sizeof(double)));
  assignment_.column_dual = with_duals ? static_cast<double*>(arena_.take(matrix.cols, sizeof(double))) : nullptr;
  return DETR_FAST_DISPATCH(solve_rows<T>)(matrix, assignment_, arena_, checkpoint);
}

void AssignmentSolver::order_partners(int64_t* rows, int64_t* cols) const {
  for (int64_t k = 0; k < size_; ++k) cols[k] = k;
  std::sort(cols, cols + size_, [&](int64_t a, int64_t b) { return partner(a) < partner(b); });
  for (int64_t k = 0; k < size_; ++k) rows[k] = partner(cols[k]);
}

template Status AssignmentSolver::solve(const MatrixView<float>&, Checkpoint&, bool);
template Status AssignmentSolver::solve(const MatrixView<double>&, Checkpoint&, bool);

}  // namespace detr_fast

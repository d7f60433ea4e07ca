// Rectangular linear sum assignment, with the indices of SciPy's function, ties included.
#pragma once

#include <cstdint>
#include <memory>

#include "assignment/arena.h"
#include "assignment/matrix.h"
#include "common/checkpoint.h"

namespace detr_fast {

// Solves one matrix after another, and keeps the memory that it needs for the next.
class AssignmentSolver {
 public:
  // Assigns columns of least total cost to the rows of `cost`, or rows to its columns where there are fewer columns.
  // The cost is read in place if the vectors of the shorter side are contiguous and at most half as many as
  // those of the longer one; otherwise it is copied. The checkpoint may end the work by an exception.
  template <typename T>
  Status solve(const MatrixView<T>& cost, Checkpoint& checkpoint, bool with_duals = false);

  // After kSolved: the vectors of the shorter side, in order, and the partner of each.
  bool by_column() const { return by_column_; }
  int64_t size() const { return size_; }
  int64_t partner(int64_t k) const { return assignment_.column_of_row[k]; }

  // After kSolved by column: the rows that have a partner, ascending, and the partners.
  void order_partners(int64_t* rows, int64_t* cols) const;

  // After kSolved with duals: row + column <= cost, with equality for partners.
  const double* row_dual() const { return by_column_ ? assignment_.column_dual : assignment_.row_dual; }
  const double* column_dual() const { return by_column_ ? assignment_.row_dual : assignment_.column_dual; }

 private:
  Arena arena_;
  Assignment assignment_ = {};
  int64_t size_ = 0;
  bool by_column_ = false;
};

// Lends the solver of the calling thread, so that a call reuses the memory of the calls before. Where that is lent
// already, because a signal handler calls while the checkpoint of another call runs it, it lends a new one.
class ThreadSolver {
 public:
  ThreadSolver();
  ~ThreadSolver();
  ThreadSolver(const ThreadSolver&) = delete;
  ThreadSolver& operator=(const ThreadSolver&) = delete;

  AssignmentSolver& operator*() const { return *solver_; }

 private:
  AssignmentSolver* solver_;
  std::unique_ptr<AssignmentSolver> own_;
};

}  // namespace detr_fast

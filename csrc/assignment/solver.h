// Rectangular linear sum assignment, with the answers of SciPy's function to the last index.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "assignment/arena.h"
#include "assignment/matrix.h"

namespace detr_fast {

// Solves one matrix after another; the memory it needs it keeps for the next.
class AssignmentSolver {
 public:
  // Columns of least total cost for the rows of `cost`, or rows for its columns where there are fewer of those.
  // The cost is read where it lies if those vectors are contiguous and the matrix is not square; else a copy is.
  template <typename T>
  Status solve(const MatrixView<T>& cost, bool with_duals = false);

  // After kSolved. Each of the shorter side, in order, and its partner.
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

// One for each thread: memory that is kept need not be had from the system, page by page, at every call.
AssignmentSolver& thread_solver();

// The instruction sets this machine has, widest first, as "avx512", "avx2", "portable".
std::vector<std::string> instruction_sets();

// Takes another than the widest from now on, for tests: answers do not depend on it. False where there is none.
bool use_instruction_set(const std::string& name);

}  // namespace detr_fast

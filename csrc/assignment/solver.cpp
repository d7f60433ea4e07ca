#include "assignment/solver.h"

#include <algorithm>
#include <atomic>

namespace detr_fast {

#if defined(__x86_64__) && defined(__GNUC__)
#define DETR_FAST_X86 1
#endif

#define DETR_FAST_DECLARE(name)                                       \
  namespace name {                                                    \
  template <typename T>                                               \
  Status solve_rows(const MatrixView<T>&, const Assignment&, Arena&);       \
  extern template Status solve_rows(const MatrixView<float>&, const Assignment&, Arena&);  \
  extern template Status solve_rows(const MatrixView<double>&, const Assignment&, Arena&); \
  }
DETR_FAST_DECLARE(portable)
#ifdef DETR_FAST_X86
DETR_FAST_DECLARE(avx2)
DETR_FAST_DECLARE(avx512)
#endif

namespace {

template <typename T>
using SolveRows = Status (*)(const MatrixView<T>&, const Assignment&, Arena&);

struct InstructionSet {
  const char* name;
  SolveRows<float> solve_floats;
  SolveRows<double> solve_doubles;

  SolveRows<float> solve_rows(float) const { return solve_floats; }
  SolveRows<double> solve_rows(double) const { return solve_doubles; }
};

const std::vector<InstructionSet>& available() {
  static const std::vector<InstructionSet> sets = [] {
    std::vector<InstructionSet> found;
#ifdef DETR_FAST_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      found.push_back({"avx512", avx512::solve_rows<float>, avx512::solve_rows<double>});
    }
    if (__builtin_cpu_supports("avx2")) {
      found.push_back({"avx2", avx2::solve_rows<float>, avx2::solve_rows<double>});
    }
#endif
    found.push_back({"portable", portable::solve_rows<float>, portable::solve_rows<double>});
    return found;
  }();
  return sets;
}

std::atomic<size_t> chosen{0};

}  // namespace

AssignmentSolver& thread_solver() {
  thread_local AssignmentSolver solver;
  return solver;
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const InstructionSet& set : available()) names.emplace_back(set.name);
  return names;
}

bool use_instruction_set(const std::string& name) {
  for (size_t k = 0; k < available().size(); ++k) {
    if (name == available()[k].name) {
      chosen = k;
      return true;
    }
  }
  return false;
}

template <typename T>
Status AssignmentSolver::solve(const MatrixView<T>& cost, bool with_duals) {
  arena_.clear();
  by_column_ = cost.cols < cost.rows;
  const auto turned = MatrixView<T>{cost.data, cost.cols, cost.rows, cost.col_stride, cost.row_stride};
  const MatrixView<T> matrix = by_column_ ? turned : cost;
  size_ = matrix.rows;
  if (size_ == 0) return Status::kSolved;
  assignment_.column_of_row = static_cast<int64_t*>(arena_.take(matrix.rows, sizeof(int64_t)));
  assignment_.row_dual = static_cast<double*>(arena_.take(matrix.rows, sizeof(double)));
  assignment_.column_dual = with_duals ? static_cast<double*>(arena_.take(matrix.cols, sizeof(double))) : nullptr;
  return available()[chosen].solve_rows(T{})(matrix, assignment_, arena_);
}

void AssignmentSolver::order_partners(int64_t* rows, int64_t* cols) const {
  for (int64_t k = 0; k < size_; ++k) cols[k] = k;
  std::sort(cols, cols + size_, [&](int64_t a, int64_t b) { return partner(a) < partner(b); });
  for (int64_t k = 0; k < size_; ++k) rows[k] = partner(cols[k]);
}

template Status AssignmentSolver::solve(const MatrixView<float>&, bool);
template Status AssignmentSolver::solve(const MatrixView<double>&, bool);

}  // namespace detr_fast

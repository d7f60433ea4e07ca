#include "linear_sum_assignment.h"

#include <algorithm>
#include <atomic>
#include <limits>

namespace detr_fast {

#if defined(__x86_64__) && defined(__GNUC__)
#define DETR_FAST_X86 1
#endif

#define DETR_FAST_DECLARE(name)                                       \
  namespace name {                                                    \
  template <typename T>                                               \
  Status solve_rows(const Rows<T>&, const Assignment&, Arena&);       \
  extern template Status solve_rows(const Rows<float>&, const Assignment&, Arena&);  \
  extern template Status solve_rows(const Rows<double>&, const Assignment&, Arena&); \
  }
DETR_FAST_DECLARE(portable)
#ifdef DETR_FAST_X86
DETR_FAST_DECLARE(avx2)
DETR_FAST_DECLARE(avx512)
#endif

namespace {

template <typename T>
using SolveRows = Status (*)(const Rows<T>&, const Assignment&, Arena&);

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
  // A square matrix is scanned in packs, which its rows must fill.
  const bool in_place = matrix.col_stride == 1 && matrix.rows < matrix.cols;
  const Rows<T> rows = in_place ? Rows<T>{matrix.data, matrix.rows, matrix.cols, matrix.row_stride} : gather(matrix);
  return available()[chosen].solve_rows(T{})(rows, assignment_, arena_);
}

void AssignmentSolver::order_partners(int64_t* rows, int64_t* cols) const {
  for (int64_t k = 0; k < size_; ++k) cols[k] = k;
  std::sort(cols, cols + size_, [&](int64_t a, int64_t b) { return partner(a) < partner(b); });
  for (int64_t k = 0; k < size_; ++k) rows[k] = partner(cols[k]);
}

template <typename T>
Rows<T> AssignmentSolver::gather(const MatrixView<T>& cost) {
  constexpr int64_t kPack = 8;
  const int64_t pitch = (cost.cols + kPack - 1) / kPack * kPack;
  auto* copy = static_cast<T*>(arena_.take(cost.rows * pitch, sizeof(T)));
  for (int64_t i = 0; i < cost.rows; ++i) {
    for (int64_t j = cost.cols; j < pitch; ++j) copy[i * pitch + j] = std::numeric_limits<T>::infinity();
  }
  if (cost.col_stride == 1) {
    for (int64_t i = 0; i < cost.rows; ++i) std::copy_n(cost.data + i * cost.row_stride, cost.cols, copy + i * pitch);
  } else {
    for (int64_t j = 0; j < cost.cols; ++j) {
      for (int64_t i = 0; i < cost.rows; ++i) {
        copy[i * pitch + j] = cost.data[i * cost.row_stride + j * cost.col_stride];
      }
    }
  }
  return {copy, cost.rows, cost.cols, pitch};
}

template Status AssignmentSolver::solve(const MatrixView<float>&, bool);
template Status AssignmentSolver::solve(const MatrixView<double>&, bool);

}  // namespace detr_fast

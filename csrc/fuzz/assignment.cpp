#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "assignment/batch.h"
#include "assignment/solver.h"
#include "common/checkpoint.h"
#include "common/instruction_set.h"
#include "fuzz/cases.h"
#include "fuzz/reference.h"

namespace detr_fast {
namespace {

enum Family { kUniform, kFewValues, kNearTies, kLevels, kBlocks, kForbidden, kHuge, kInvalid, kNumFamilies };

template <typename T>
T random_cost(Bytes& bytes, int64_t family, const std::vector<T>& level, int64_t row, int64_t col) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  const T unit = static_cast<T>(bytes.below(65536)) / 65536;
  switch (family) {
    case kFewValues: return std::floor(unit * 4);
    case kNearTies: return 1 + static_cast<T>(1e-6) * std::floor(unit * 4);
    case kLevels: return level[row] + level[level.size() - 1 - col % level.size()] + unit / 1024;
    case kBlocks: return (row % 2 == col % 2 ? static_cast<T>(1e6) : 0) + unit;
    case kForbidden: return unit < static_cast<T>(0.3) ? kInfinity : unit;
    case kHuge: return (unit - static_cast<T>(0.5)) * std::numeric_limits<T>::max();
    case kInvalid: return unit > static_cast<T>(0.999) ? (unit > static_cast<T>(0.9995) ? NAN : -kInfinity) : unit;
    default: return unit - static_cast<T>(0.5);
  }
}

// The memory ends where the matrix does, so that a sanitizer reports any access beyond it.
template <typename T>
struct Problem {
  std::unique_ptr<T[]> memory;
  MatrixView<T> view;
  std::vector<double> row_major;  // with the shorter side's vectors as rows
  int64_t rows, cols;             // of row_major
};

template <typename T>
Problem<T> make_problem(Bytes& bytes) {
  const int64_t limit = bytes.next() % 16 ? 12 : 80;
  const int64_t n = 1 + bytes.below(limit), m = bytes.next() % 3 ? 1 + bytes.below(limit) : n;
  const int64_t family = bytes.next() % kNumFamilies, layout = bytes.next() % 3;
  std::vector<T> level(n);
  for (T& value : level) value = static_cast<T>(bytes.next()) / 256;
  Problem<T> p;
  const int64_t step = layout == 2 ? 2 : 1;
  p.view = {nullptr, n, m, layout == 1 ? 1 : m * step + (layout == 2), layout == 1 ? n : step};
  const int64_t size = (n - 1) * p.view.row_stride + (m - 1) * p.view.col_stride + 1;
  p.memory.reset(new T[size]());
  p.view.data = p.memory.get();
  p.rows = std::min(n, m), p.cols = std::max(n, m);
  p.row_major.resize(n * m);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < m; ++j) {
      const T value = random_cost(bytes, family, level, i, j);
      p.memory[i * p.view.row_stride + j * p.view.col_stride] = value;
      p.row_major[m < n ? j * n + i : i * m + j] = static_cast<double>(value);
    }
  }
  return p;
}

template <typename T>
void check_duals(const Problem<T>& p, const AssignmentSolver& solver) {
  const double *u = solver.row_dual(), *v = solver.column_dual();
  double scale = 0;
  for (const double value : p.row_major) scale = std::isfinite(value) ? std::max(scale, std::abs(value)) : scale;
  if (scale > 1e150) return;
  const double rounding = 1e-9 * scale;
  for (int64_t i = 0; i < p.view.rows; ++i) {
    for (int64_t j = 0; j < p.view.cols; ++j) {
      const auto cost = static_cast<double>(p.view.data[i * p.view.row_stride + j * p.view.col_stride]);
      require(u[i] + v[j] <= cost + rounding, "duals are feasible");
      const bool matched = solver.partner(solver.by_column() ? j : i) == (solver.by_column() ? i : j);
      if (matched) require(u[i] + v[j] >= cost - rounding, "matched pairs are tight");
    }
  }
}

template <typename T>
void check_problem(Bytes& bytes) {
  ThreadSolver thread_solver;
  AssignmentSolver& solver = *thread_solver;
  Checkpoint checkpoint([] {});
  const Problem<T> p = make_problem<T>(bytes);
  std::vector<int64_t> expected;
  const Status status = solve_reference(p.row_major, p.rows, p.cols, &expected);
  for (const std::string& name : instruction_sets()) {
    use_instruction_set(name);
    require(solver.solve(p.view, checkpoint, true) == status, "the status of the reference");
    if (status != Status::kSolved) continue;
    for (int64_t k = 0; k < p.rows; ++k) require(solver.partner(k) == expected[k], "the indices of the reference");
    check_duals(p, solver);
  }
}

// The solution of a batch does not depend on the number of threads.
template <typename T>
void check_batch(Bytes& bytes) {
  AssignmentBatch<T> batch = {};
  batch.layers = 1 + bytes.below(4), batch.groups = 1 + bytes.below(3), batch.queries = bytes.below(40);
  batch.sizes.resize(1 + bytes.below(6));
  for (int64_t& size : batch.sizes) batch.targets += size = bytes.below(20);
  const int64_t all_queries = batch.groups * batch.queries, family = bytes.next() % kNumFamilies;
  const std::vector<T> level(12, T{0});
  std::vector<T> cost(batch.layers * batch.targets * all_queries);
  for (T& value : cost) value = random_cost(bytes, family, level, bytes.next() % 12, 0);
  std::vector<int64_t> single(batch.layers * batch.groups * batch.targets), several(single.size());
  batch.cost = cost.data();
  batch.layer_stride = batch.targets * all_queries, batch.target_stride = all_queries, batch.query_stride = 1;
  batch.query = single.data();
  batch.solve(1, [] {});
  const size_t failures = batch.failures.size();
  batch.failures.clear();
  batch.query = several.data();
  batch.solve(4, [] {});
  require(single == several && batch.failures.size() == failures, "the same indices with several threads");
}

}  // namespace

void check_assignment(Bytes& bytes) { bytes.next() % 2 ? check_problem<float>(bytes) : check_problem<double>(bytes); }

void check_assignment_batch(Bytes& bytes) { bytes.next() % 2 ? check_batch<float>(bytes) : check_batch<double>(bytes); }

}  // namespace detr_fast

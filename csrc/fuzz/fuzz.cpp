// Turns bytes into assignment problems and checks every answer. With libFuzzer, define DETR_FAST_LIBFUZZER; without,
// this runs on random bytes:  fuzz SECONDS [SEED]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "assignment/batch.h"
#include "assignment/solver.h"
#include "common/instruction_set.h"
#include "fuzz/reference.h"

namespace detr_fast {
namespace {

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "wrong: %s\n", what);
  std::abort();
}

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  uint8_t next() { return place_ < size_ ? data_[place_++] : 0; }
  int64_t below(int64_t limit) { return (next() * 256 + next()) % limit; }

 private:
  const uint8_t* data_;
  size_t size_, place_ = 0;
};

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

// Memory that ends where the matrix does, so that a sanitizer sees what is read beyond.
template <typename T>
struct Problem {
  std::unique_ptr<T[]> memory;
  MatrixView<T> view;
  std::vector<double> plain;  // the shorter side's vectors, row-major
  int64_t rows, cols;         // of `plain`
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
  p.plain.resize(n * m);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < m; ++j) {
      const T value = random_cost(bytes, family, level, i, j);
      p.memory[i * p.view.row_stride + j * p.view.col_stride] = value;
      p.plain[m < n ? j * n + i : i * m + j] = static_cast<double>(value);
    }
  }
  return p;
}

template <typename T>
void check_duals(const Problem<T>& p, const AssignmentSolver& solver) {
  const double *u = solver.row_dual(), *v = solver.column_dual();
  double scale = 0;
  for (const double value : p.plain) scale = std::isfinite(value) ? std::max(scale, std::abs(value)) : scale;
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
void check_one(Bytes& bytes) {
  AssignmentSolver& solver = thread_solver();
  const Problem<T> p = make_problem<T>(bytes);
  std::vector<int64_t> expected;
  const Status status = solve_plainly(p.plain, p.rows, p.cols, &expected);
  for (const std::string& name : instruction_sets()) {
    use_instruction_set(name);
    require(solver.solve(p.view, true) == status, "the same status");
    if (status != Status::kSolved) continue;
    for (int64_t k = 0; k < p.rows; ++k) require(solver.partner(k) == expected[k], "the same indices");
    check_duals(p, solver);
  }
}

// A batch gives with any number of threads what its problems give one by one.
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
  batch.solve(1);
  const size_t failures = batch.failures.size();
  batch.failures.clear();
  batch.query = several.data();
  batch.solve(4);
  require(single == several && batch.failures.size() == failures, "threads change nothing");
}

}  // namespace
}  // namespace detr_fast

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  detr_fast::Bytes bytes(data, size);
  const uint8_t kind = bytes.next();
  if (kind % 8 == 0) {
    kind % 16 ? detr_fast::check_batch<float>(bytes) : detr_fast::check_batch<double>(bytes);
  } else {
    kind % 2 ? detr_fast::check_one<float>(bytes) : detr_fast::check_one<double>(bytes);
  }
  return 0;
}

#ifndef DETR_FAST_LIBFUZZER
int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: fuzz SECONDS [SEED]\n");
    return 2;
  }
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoll(argv[1]));
  std::mt19937_64 random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0);
  std::vector<uint8_t> data(16384);
  int64_t count = 0;
  for (; std::chrono::steady_clock::now() < end; ++count) {
    for (size_t k = 0; k < data.size(); k += 8) {
      const uint64_t word = random();
      std::copy_n(reinterpret_cast<const uint8_t*>(&word), 8, data.data() + k);
    }
    LLVMFuzzerTestOneInput(data.data(), data.size());
  }
  std::printf("%lld inputs, nothing found\n", static_cast<long long>(count));
  return 0;
}
#endif

// Whether the answer of JonkerVolgenant is the only one that SciPy could give.
//
// Let s = cost - u - v be the slack of each pair. Any other assignment differs from this one by cycles that alternate
// between pairs of one and of the other, and by paths of the same kind from a column that becomes free to a free one.
// It costs more by the slack of its own pairs and by -v of the columns that become free. If every such cycle and path
// has a term above `tolerance`, the other assignment costs at least about that much more. SciPy's duals, like any that
// are found by shortest augmenting paths of n rows in double precision, are feasible and tight within (4n + 7) e, where
// e bounds one rounding error, so that its answer is within 2n (4n + 7) e of the optimum. Above that it is this answer.
//
// As a graph: an arc from row to row where the first's pair with the other's column is within the tolerance, one from
// a row to the node "free" where its cheapest free column is, one from that node to each row whose column has a dual
// within the tolerance of 0. The answer is the only one if the graph has no cycle.
#include <cstdint>

#include "assignment/arena.h"
#include "assignment/matrix.h"

#if defined(DETR_FAST_ASSIGNMENT_UNIQUENESS_INL_H) == defined(DETR_FAST_TOGGLE)
#ifdef DETR_FAST_ASSIGNMENT_UNIQUENESS_INL_H
#undef DETR_FAST_ASSIGNMENT_UNIQUENESS_INL_H
#else
#define DETR_FAST_ASSIGNMENT_UNIQUENESS_INL_H
#endif

#include "assignment/jonker_volgenant-inl.h"
#include "assignment/scan-inl.h"
#include "assignment/simd-inl.h"
#include "common/target-inl.h"

DETR_FAST_BEFORE_NAMESPACE();
namespace detr_fast::DETR_FAST_NAMESPACE {

template <typename T>
class UniquenessCertificate {
 public:
  UniquenessCertificate(JonkerVolgenant<T>& solution, const RowMatrix<T>& cost, Arena& arena)
      : solution_(solution), cost_(cost), n_(cost.rows), max_arcs_(8 * n_ + 64) {
    arcs_ = static_cast<int64_t*>(arena.take(max_arcs_, sizeof(int64_t)));
    first_arc_ = static_cast<int64_t*>(arena.take(n_ + 2, sizeof(int64_t)));
    next_arc_ = static_cast<int64_t*>(arena.take(n_ + 1, sizeof(int64_t)));
    stack_ = static_cast<int64_t*>(arena.take(n_ + 1, sizeof(int64_t)));
  }

  bool holds() {
    // Every number that enters a shortest path is below 16 times this.
    const double scale = magnitude();
    if (!(scale < 1e290)) return false;
    const auto n = static_cast<double>(n_);
    const double unit = 0x1p-53 * scale;
    allowance_ = 16 * (4 * n + 8) * unit;
    tolerance_ = 64 * n * (4 * n + 16) * unit;
    return find_arcs() && (num_arcs_ == 0 || !has_cycle());
  }

 private:
  // Bounds the costs and duals that matter. Each row has an arc to one of any n columns, so that no path is longer
  // than the greatest cost of the scanned columns; where that is forbidden, a path of n - 1 detours bounds it.
  double magnitude() const {
    double scale = absolute(solution_.lowest_);
    const bool forbidden = solution_.highest_ == kInfinity;
    scale = maximum(scale, forbidden ? greatest_finite() * static_cast<double>(n_) : absolute(solution_.highest_));
    for (int64_t i = 0; i < n_; ++i) {
      scale = maximum(scale, maximum(absolute(solution_.row_dual_[i]),
                                     absolute(solution_.column_dual_[solution_.index_of_row_[i]])));
    }
    return scale;
  }

  double greatest_finite() const {
    double greatest = 0;
    for (int64_t i = 0; i < n_; ++i) {
      for (int64_t j = 0; j < cost_.cols; ++j) {
        const double value = absolute(static_cast<double>(cost_.data[i * cost_.stride + j]));
        if (value < kInfinity) greatest = maximum(greatest, value);
      }
    }
    return greatest;
  }

  // False where the duals are not feasible and tight, or there are more arcs than a useful graph has.
  bool find_arcs() {
    solution_.checkpoint_.count(n_ * solution_.num_indices_);
    for (int64_t i = 0; i < n_; ++i) {
      first_arc_[i] = num_arcs_;
      if (!find_arcs_between_rows(i)) return false;
      const double slack = solution_.cheapest_free(i) - solution_.row_dual_[i];
      if (slack < -allowance_) return false;
      if (slack <= tolerance_) {
        if (!add_arc(n_)) return false;
        free_is_near_ = true;
      }
    }
    first_arc_[n_] = num_arcs_;
    for (int64_t i = 0; free_is_near_ && i < n_; ++i) {
      const double dual = solution_.column_dual_[solution_.index_of_row_[i]];
      if (dual > 0 || (dual >= -tolerance_ && !add_arc(i))) return false;
    }
    first_arc_[n_ + 1] = num_arcs_;
    return true;
  }

  bool find_arcs_between_rows(int64_t row) {
    constexpr int64_t kWidth = Pack<double>::kWidth;
    constexpr uint32_t kAll = (1u << kWidth) - 1;
    const T* costs = solution_.costs(row);
    const int64_t own = solution_.index_of_row_[row];
    const Pack<double> dual = Pack<double>::fill(solution_.row_dual_[row]), tolerance = Pack<double>::fill(tolerance_);
    Pack<double> low = Pack<double>::fill(kInfinity);
    for (int64_t k = 0; k < solution_.num_indices_; k += kWidth) {
      const Pack<double> slack =
          (Pack<double>::load(costs + k) - Pack<double>::load(solution_.column_dual_ + k)) - dual;
      low = lesser(slack, low);
      for (uint32_t near = ~less(tolerance, slack) & kAll; near; near &= near - 1) {
        const int64_t index = k + lowest_bit(near);
        const int64_t assigned = solution_.row_of_index_[index];
        free_is_near_ |= assigned == kNone;
        if (index != own && !add_arc(assigned == kNone ? n_ : assigned)) return false;
      }
    }
    const double own_slack = (static_cast<double>(costs[own]) - solution_.column_dual_[own]) - solution_.row_dual_[row];
    return own_slack <= allowance_ && low.lowest() >= -allowance_;
  }

  bool add_arc(int64_t to) {
    if (num_arcs_ == max_arcs_) return false;
    arcs_[num_arcs_++] = to;
    return true;
  }

  // Depth first; next_arc_ is kUnseen before a node is entered, and kDone after all its arcs were followed.
  bool has_cycle() {
    constexpr int64_t kUnseen = -1, kDone = -2;
    for (int64_t i = 0; i <= n_; ++i) next_arc_[i] = kUnseen;
    for (int64_t root = 0; root <= n_; ++root) {
      if (next_arc_[root] != kUnseen) continue;
      int64_t depth = 0;
      stack_[0] = root;
      next_arc_[root] = first_arc_[root];
      while (depth >= 0) {
        const int64_t node = stack_[depth];
        if (next_arc_[node] == first_arc_[node + 1]) {
          next_arc_[node] = kDone;
          --depth;
          continue;
        }
        const int64_t to = arcs_[next_arc_[node]++];
        if (next_arc_[to] >= 0) return true;
        if (next_arc_[to] == kDone) continue;
        next_arc_[to] = first_arc_[to];
        stack_[++depth] = to;
      }
    }
    return false;
  }

  static double absolute(double x) { return x < 0 ? -x : x; }
  static double maximum(double a, double b) { return a < b ? b : a; }

  JonkerVolgenant<T>& solution_;
  const RowMatrix<T> cost_;
  const int64_t n_, max_arcs_;
  int64_t* arcs_;       // the node at the end of each arc, ordered by the node at its start; node n is "free"
  int64_t* first_arc_;  // [n + 2]
  int64_t* next_arc_;   // [n + 1]
  int64_t* stack_;      // [n + 1]
  int64_t num_arcs_ = 0;
  bool free_is_near_ = false;
  double tolerance_ = 0, allowance_ = 0;
};

}  // namespace detr_fast::DETR_FAST_NAMESPACE
DETR_FAST_AFTER_NAMESPACE();

#endif

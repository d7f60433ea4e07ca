// The algorithm of D. F. Crouse, "On implementing 2D rectangular assignment algorithms", IEEE Transactions on Aerospace
// and Electronic Systems 52(4), 2016, with SciPy's order of operations. Where several optima exist the answer depends
// on the order in which columns are scanned, how equals are ranked and how near-ties round; all of it follows SciPy,
// although columns lie in their natural order here.
#include <cstdint>

#include "assignment/arena.h"
#include "assignment/matrix.h"
#include "common/checkpoint.h"

#if defined(DETR_FAST_ASSIGNMENT_SCIPY_ORDER_INL_H) == defined(DETR_FAST_TOGGLE)
#ifdef DETR_FAST_ASSIGNMENT_SCIPY_ORDER_INL_H
#undef DETR_FAST_ASSIGNMENT_SCIPY_ORDER_INL_H
#else
#define DETR_FAST_ASSIGNMENT_SCIPY_ORDER_INL_H
#endif

#include "assignment/scan-inl.h"
#include "assignment/simd-inl.h"
#include "common/target-inl.h"

DETR_FAST_BEFORE_NAMESPACE();
namespace detr_fast::DETR_FAST_NAMESPACE {

template <typename T>
class SciPyOrder {
 public:
  SciPyOrder(const RowMatrix<T>& cost, const Assignment& out, Arena& arena, Checkpoint& checkpoint)
      : cost_(cost), out_(out), checkpoint_(checkpoint) {
    const int64_t width = padded(cost.cols);
    auto* doubles = static_cast<double*>(arena.take(3 * width, sizeof(double)));
    column_dual_ = doubles, distance_ = doubles + width, rank_ = doubles + 2 * width;
    auto* indices = static_cast<int64_t*>(arena.take(2 * cost.cols + cost.rows, sizeof(int64_t)));
    row_of_column_ = indices, open_ = indices + cost.cols, closed_ = indices + 2 * cost.cols;
    tree_ = static_cast<Visit*>(arena.take(cost.rows, sizeof(Visit)));
  }

  Status solve() {
    if (!is_valid()) return Status::kInvalid;
    for (int64_t j = 0; j < padded(cost_.cols); ++j) column_dual_[j] = 0;
    for (int64_t j = 0; j < cost_.cols; ++j) row_of_column_[j] = kNone;
    for (int64_t i = 0; i < cost_.rows; ++i) {
      out_.row_dual[i] = 0;
      out_.column_of_row[i] = kNone;
    }
    open_all();
    for (int64_t i = 0; i < cost_.rows; ++i) {
      if (!augment(i)) return Status::kInfeasible;
    }
    if (out_.column_dual) {
      for (int64_t j = 0; j < cost_.cols; ++j) out_.column_dual[j] = column_dual_[j];
    }
    return Status::kSolved;
  }

 private:
  struct Visit {  // of a row by the search for a path
    int64_t row;
    double reached, row_dual;  // its distance; its dual during the search
    double column_dual;        // of its column, likewise
  };

  bool is_valid() const {
    bool nan = false;
    T lowest = 0;
    for (int64_t i = 0; i < cost_.rows; ++i) {
      const T low = least(cost_.data + i * cost_.stride, cost_.cols, &nan);
      lowest = low < lowest ? low : lowest;
    }
    return !nan && lowest != -static_cast<T>(kInfinity);
  }

  bool augment(int64_t start) {
    int64_t row = start, visits = 0, col = kNone;
    double reached = 0, dual = 0;
    while (true) {
      checkpoint_.count(2 * cost_.cols);
      tree_[visits] = {row, reached, out_.row_dual[row], dual};
      const double nearest = relax_row(row, reached, visits++ == 0);
      if (nearest == kInfinity) {
        close_tree(visits);
        return false;
      }
      col = close(best_ranked(nearest));
      reached = nearest;
      dual = column_dual_[col];
      row = row_of_column_[col];
      if (row == kNone) break;
      distance_[col] = kInfinity;
      column_dual_[col] = -kInfinity;  // excludes the column from the rest of the search
    }
    close_tree(visits);
    for (int64_t v = 0; v < visits; ++v) {
      const Visit& visit = tree_[v];
      const double growth = reached - visit.reached;
      out_.row_dual[visit.row] += v ? growth : reached;
      if (v) column_dual_[out_.column_of_row[visit.row]] -= growth;
    }
    int64_t visit = find_parent(visits, col, reached, dual);
    while (true) {
      const int64_t path_row = tree_[visit].row, previous = out_.column_of_row[path_row];
      row_of_column_[col] = path_row;
      out_.column_of_row[path_row] = col;
      if (path_row == start) break;
      col = previous;
      checkpoint_.count(visit);
      visit = find_parent(visit, col, tree_[visit].reached, tree_[visit].column_dual);
    }
    reopen();
    return true;
  }

  void close_tree(int64_t visits) {
    for (int64_t v = 1; v < visits; ++v) column_dual_[out_.column_of_row[tree_[v].row]] = tree_[v].column_dual;
  }

  // The first visit from which the column was reached at its final distance.
  int64_t find_parent(int64_t end, int64_t col, double distance, double dual) const {
    int64_t v = 0;
    while (v + 1 < end) {
      const Visit& visit = tree_[v];
      const double cost = static_cast<double>(cost_.data[visit.row * cost_.stride + col]);
      if (visit.reached + cost - visit.row_dual - dual == distance) break;
      ++v;
    }
    return v;
  }

  // SciPy scans the open columns from the last one down, and moves the last in that order to the index of the column
  // that is closed. Among the nearest it takes the last unassigned one, or else the first: the one of highest rank.
  void open_all() {
    num_open_ = cost_.cols;
    for (int64_t j = 0; j < num_open_; ++j) {
      open_[num_open_ - 1 - j] = j;
      rank(j, num_open_ - 1 - j);
    }
  }

  void rank(int64_t col, int64_t index) {
    rank_[col] = static_cast<double>(row_of_column_[col] == kNone ? index : -1 - index);
  }

  int64_t close(double rank_of_column) {
    const auto ranked = static_cast<int64_t>(rank_of_column);
    const int64_t index = ranked < 0 ? -1 - ranked : ranked, col = open_[index], last = open_[--num_open_];
    open_[index] = last;
    open_[num_open_] = col;  // for reopen()
    rank(last, index);
    closed_[cost_.cols - 1 - num_open_] = index;
    return col;
  }

  // Undoes every close().
  void reopen() {
    for (; num_open_ < cost_.cols; ++num_open_) {
      const int64_t index = closed_[cost_.cols - 1 - num_open_], col = open_[num_open_], last = open_[index];
      open_[num_open_] = last;
      open_[index] = col;
      rank(last, num_open_);
      rank(col, index);
    }
  }

  double relax_row(int64_t row, double reached, bool first) {
    constexpr int64_t kWidth = Pack<double>::kWidth;
    const T* costs = cost_.data + row * cost_.stride;
    const Pack<double> from = Pack<double>::fill(reached), dual = Pack<double>::fill(out_.row_dual[row]);
    Pack<double> low = Pack<double>::fill(kInfinity);
    for (int64_t j = 0; j < cost_.cols; j += kWidth) {
      const int64_t left = cost_.cols - j;
      const auto cost = left >= kWidth ? Pack<double>::load(costs + j) : Pack<double>::load_part(costs + j, left);
      // The order of these operations decides how near-ties round.
      Pack<double> d = ((from + cost) - dual) - Pack<double>::load(column_dual_ + j);
      d = lesser(d, first ? Pack<double>::fill(kInfinity) : Pack<double>::load(distance_ + j));
      d.store(distance_ + j);
      low = lesser(d, low);
    }
    return low.lowest();
  }

  double best_ranked(double nearest) const {
    const Pack<double> wanted = Pack<double>::fill(nearest), none = Pack<double>::fill(-kInfinity);
    Pack<double> best = none;
    for (int64_t j = 0; j < cost_.cols; j += Pack<double>::kWidth) {
      const auto rank = Pack<double>::load(rank_ + j);
      best = greater(where_equal(Pack<double>::load(distance_ + j), wanted, rank, none), best);
    }
    return best.highest();
  }

  const RowMatrix<T> cost_;
  const Assignment out_;
  Checkpoint& checkpoint_;
  double* column_dual_;  // [cols] the columns' duals
  double* distance_;     // [cols]
  double* rank_;         // [cols] as doubles, so that one kind of vector serves
  int64_t* row_of_column_;
  int64_t* open_;    // columns outside the search tree, in scan order
  int64_t* closed_;  // indices in open_ from which columns went into the tree
  int64_t num_open_ = 0;
  Visit* tree_;
};

}  // namespace detr_fast::DETR_FAST_NAMESPACE
DETR_FAST_AFTER_NAMESPACE();

#endif

// The assignment problem by row minima, column reduction, augmenting row reduction and shortest augmenting paths
// (R. Jonker and A. Volgenant, "A shortest augmenting path algorithm for dense and sparse linear assignment problems",
// Computing 38, 1987). There are two forms. Where the matrix has many rows ("wide"), every step scans all columns.
// Where it has few, a step scans the assigned columns only, in a compact copy, and FreeColumns answers for the
// unassigned ones. An "index" is the position of a column among those that are scanned.
#include <cstdint>

#include "assignment/arena.h"
#include "assignment/matrix.h"
#include "common/checkpoint.h"

#if defined(DETR_FAST_ASSIGNMENT_JONKER_VOLGENANT_INL_H) == defined(DETR_FAST_TOGGLE)
#ifdef DETR_FAST_ASSIGNMENT_JONKER_VOLGENANT_INL_H
#undef DETR_FAST_ASSIGNMENT_JONKER_VOLGENANT_INL_H
#else
#define DETR_FAST_ASSIGNMENT_JONKER_VOLGENANT_INL_H
#endif

#include "assignment/free_columns-inl.h"
#include "assignment/scan-inl.h"
#include "assignment/simd-inl.h"
#include "common/target-inl.h"

DETR_FAST_BEFORE_NAMESPACE();
namespace detr_fast::DETR_FAST_NAMESPACE {

template <typename T>
class JonkerVolgenant {
 public:
  static bool is_wide(int64_t rows, int64_t cols) { return 2 * rows > cols; }

  // In the wide form the rows of `cost` must be padded with +inf to a multiple of kPadding.
  JonkerVolgenant(const RowMatrix<T>& cost, const Assignment& out, Arena& arena, Checkpoint& checkpoint)
      : n_(cost.rows),
        num_columns_(cost.cols),
        wide_(is_wide(cost.rows, cost.cols)),
        square_(cost.rows == cost.cols),
        pitch_(wide_ ? cost.stride : padded(cost.rows)),
        free_(wide_ ? RowMatrix<T>{cost.data, 0, 0, 0} : cost, arena),
        copy_(wide_ ? nullptr : static_cast<T*>(arena.take(n_ * pitch_, sizeof(T)))),
        costs_(wide_ ? cost.data : copy_),
        row_dual_(out.row_dual),
        checkpoint_(checkpoint) {
    const int64_t width = padded(wide_ ? num_columns_ : n_);
    auto* doubles = static_cast<double*>(arena.take(3 * width, sizeof(double)));
    column_dual_ = doubles, distance_ = doubles + width, cheapest_row_ = doubles + 2 * width;
    auto* indices = static_cast<int64_t*>(arena.take(4 * width, sizeof(int64_t)));
    index_of_row_ = indices, row_of_index_ = indices + width;
    column_ = indices + 2 * width, unassigned_ = indices + 3 * width;
    tree_ = static_cast<Visit*>(arena.take(n_, sizeof(Visit)));
    for (int64_t k = 0; k < width; ++k) {
      column_dual_[k] = 0;
      index_of_row_[k] = row_of_index_[k] = kNone;
      column_[k] = k;
    }
  }

  // Returns false where it gives up: a cost is NaN or -inf, no assignment exists, or there are so many ties that the
  // answer could not be proved unique.
  DETR_FAST_NOINLINE bool solve(const Assignment& out) {
    for (int64_t i = 0; i < n_; ++i) row_dual_[i] = 0;
    checkpoint_.count(n_ * num_columns_);
    const bool valid = wide_ ? find_range() : free_.start();
    if (!valid) return false;
    if (wide_) {
      assign_row_minima();
    } else {
      assign_row_minima_to_free();
    }
    if (square_ && num_unassigned_ > n_ / 4) {
      checkpoint_.count(2 * n_ * n_);
      reduce_columns();
      transfer_reductions();
    }
    reduce_augmenting_rows();
    if (too_many_ties()) return false;
    for (int64_t k = 0; k < num_unassigned_; ++k) {
      if (!augment(unassigned_[k])) return false;
    }
    for (int64_t i = 0; i < n_; ++i) out.column_of_row[i] = column_[index_of_row_[i]];
    if (out.column_dual) {
      for (int64_t j = 0; j < num_columns_; ++j) out.column_dual[j] = 0;
      for (int64_t i = 0; i < n_; ++i) out.column_dual[out.column_of_row[i]] = column_dual_[index_of_row_[i]];
    }
    return true;
  }

 private:
  template <typename>
  friend class UniquenessCertificate;

  struct Visit {  // of a row by the search for a shortest path
    int64_t row;
    double reached, offset;  // the row's distance; the distance less the row's dual
    double column_dual;      // of the column through which the row was reached
  };

  const T* costs(int64_t row) const { return costs_ + row * pitch_; }
  double cheapest_free(int64_t row) { return wide_ ? kInfinity : free_.cheapest(row); }

  void assign(int64_t row, int64_t index) {
    index_of_row_[row] = index;
    row_of_index_[index] = row;
  }

  // Adds the row's cheapest free column to the columns that are scanned, and returns its index.
  int64_t scan_cheapest_free(int64_t row) {
    const int64_t col = free_.find_cheapest(row), index = num_indices_++;
    const double highest = free_.remove(col, copy_ + index, pitch_);
    highest_ = highest > highest_ ? highest : highest_;
    column_[index] = col;
    return index;
  }

  // Wide form: reads the matrix once for its range. Returns false where a cost is NaN or -inf.
  DETR_FAST_NOINLINE bool find_range() {
    constexpr int64_t kWidth = Pack<double>::kWidth;
    const Pack<double> forbidden = Pack<double>::fill(kInfinity), none = Pack<double>::fill(-kInfinity);
    Pack<double> low = forbidden, high = none;
    uint32_t nans = 0;
    int64_t num_forbidden = 0;
    for (int64_t i = 0; i < n_; ++i) {
      for (int64_t k = 0; k < num_columns_; k += kWidth) {
        const Pack<double> cost = Pack<double>::load(costs(i) + k);
        nans |= any_nan(cost, cost);
        low = lesser(cost, low);
        high = greater(where_equal(cost, forbidden, none, cost), high);
        num_forbidden += count_bits(equal(cost, forbidden));
      }
    }
    const int64_t padding = (num_columns_ + kWidth - 1) / kWidth * kWidth - num_columns_;
    num_indices_ = num_columns_;
    lowest_ = low.lowest();
    highest_ = num_forbidden > n_ * padding ? kInfinity : high.highest();
    return !nans && lowest_ != -kInfinity;
  }

  // Wide form: assigns each row its cheapest column, unless an earlier row has it.
  void assign_row_minima() {
    for (int64_t i = 0; i < n_; ++i) {
      bool nan = false;
      const T low = least(costs(i), num_columns_, &nan);
      const int64_t index = low < kInfinity ? find_first(costs(i), num_columns_, low) : kNone;
      if (index == kNone || row_of_index_[index] != kNone) {
        unassigned_[num_unassigned_++] = i;
      } else {
        row_dual_[i] = static_cast<double>(low);
        assign(i, index);
      }
    }
  }

  // The same where the assigned columns are copied.
  DETR_FAST_NOINLINE void assign_row_minima_to_free() {
    for (int64_t k = 0; k < n_ * pitch_; ++k) copy_[k] = static_cast<T>(kInfinity);
    lowest_ = free_.lowest();
    for (int64_t i = 0; i < n_; ++i) {
      const int64_t col = free_.remove_cheapest(i);
      if (col == kNone) {
        unassigned_[num_unassigned_++] = i;
      } else {
        row_dual_[i] = free_.cheapest(i);
        column_[num_indices_] = col;
        assign(i, num_indices_++);
      }
    }
    highest_ = free_.copy_removed(column_, num_indices_, copy_, pitch_);
  }

  // Column reduction, from an empty assignment: the dual of each column becomes its least cost, and the row of that
  // cost is assigned the column if it has none yet.
  DETR_FAST_NOINLINE void reduce_columns() {
    for (int64_t k = 0; k < n_; ++k) {
      column_dual_[k] = kInfinity;
      index_of_row_[k] = row_of_index_[k] = kNone;
    }
    for (int64_t i = 0; i < n_; ++i) {
      const Pack<double> row = Pack<double>::fill(static_cast<double>(i));
      for (int64_t k = 0; k < n_; k += Pack<double>::kWidth) {
        const Pack<double> cost = Pack<double>::load(costs(i) + k), dual = Pack<double>::load(column_dual_ + k);
        where_less(cost, dual, row, Pack<double>::load(cheapest_row_ + k)).store(cheapest_row_ + k);
        lesser(cost, dual).store(column_dual_ + k);
      }
    }
    for (int64_t k = n_ - 1; k >= 0; --k) {
      if (column_dual_[k] == kInfinity) {
        column_dual_[k] = 0;
      } else if (const auto row = static_cast<int64_t>(cheapest_row_[k]); index_of_row_[row] == kNone) {
        assign(row, k);
      }
    }
    num_unassigned_ = 0;
    for (int64_t i = 0; i < n_; ++i) {
      if (index_of_row_[i] == kNone) unassigned_[num_unassigned_++] = i;
    }
  }

  // Reduction transfer: lowers the dual of each assigned column by the slack of its row's next best column.
  void transfer_reductions() {
    for (int64_t i = 0; i < n_; ++i) {
      if (index_of_row_[i] == kNone) continue;
      const TwoNearest best = two_nearest(costs(i), column_dual_, num_indices_);
      const double next = best.index == index_of_row_[i] ? best.second : best.first;
      if (next == kInfinity) continue;
      row_dual_[i] = next;
      column_dual_[index_of_row_[i]] = static_cast<double>(costs(i)[index_of_row_[i]]) - next;
    }
  }

  // Augmenting row reduction of every unassigned row, within a number of steps.
  DETR_FAST_NOINLINE void reduce_augmenting_rows() {
    int64_t steps = kStepsPerRow * n_, still_unassigned = 0;
    for (int64_t k = 0; k < num_unassigned_ && !too_many_ties(); ++k) {
      int64_t row = unassigned_[k];
      while (row != kNone && steps > 0) {
        --steps;
        const int64_t displaced = reduce_augmenting_row(row);
        if (displaced == row) break;
        row = displaced;
      }
      if (row != kNone) unassigned_[still_unassigned++] = row;
    }
    num_unassigned_ = still_unassigned;
    checkpoint_.count((kStepsPerRow * n_ - steps) * num_indices_);
  }

  // Assigns the row its nearest column, and lowers the column's dual until the row's next best column is as near.
  // Returns the row that was assigned the column before, kNone if there was none; and the row itself where the dual
  // would not change.
  int64_t reduce_augmenting_row(int64_t row) {
    const double free = cheapest_free(row);
    const TwoNearest best = two_nearest(costs(row), column_dual_, num_indices_);
    if (free <= best.first) {
      if (free == kInfinity) return row;
      row_dual_[row] = free;
      assign(row, scan_cheapest_free(row));
      return kNone;
    }
    const double next = free < best.second ? free : best.second;
    num_ties_ += next == best.first;
    const int64_t displaced = row_of_index_[best.index];
    if (next == kInfinity || (next == best.first && displaced != kNone)) return row;
    if (displaced == kNone && !square_) {  // the dual of a column that was not assigned before stays 0
      row_dual_[row] = best.first;
    } else {
      row_dual_[row] = next;
      column_dual_[best.index] = static_cast<double>(costs(row)[best.index]) - next;
    }
    if (displaced != kNone) index_of_row_[displaced] = kNone;
    assign(row, best.index);
    return displaced;
  }

  // Augmentation along a shortest path from an unassigned row to an unassigned column. Returns false where there is
  // no path.
  DETR_FAST_NOINLINE bool augment(int64_t start) {
    row_dual_[start] = 0;
    int64_t row = start, visits = 0, index = kNone, free_visit = kNone;
    double reached = 0, dual = 0, nearest_free = kInfinity;
    while (row != kNone) {
      const double offset = reached - row_dual_[row], free = cheapest_free(row) + offset;
      tree_[visits] = {row, reached, offset, dual};
      free_visit = free < nearest_free ? visits : free_visit;
      nearest_free = free < nearest_free ? free : nearest_free;
      const double nearest = visits++ ? relax<false>(costs(row), column_dual_, offset, distance_, num_indices_)
                                      : relax<true>(costs(row), column_dual_, offset, distance_, num_indices_);
      if (!(nearest < nearest_free)) {
        index = kNone;
        reached = nearest_free;
        break;
      }
      index = find_first(distance_, num_indices_, nearest);
      reached = nearest;
      dual = column_dual_[index];
      row = row_of_index_[index];
      if (row != kNone) {  // excludes the column from the rest of the search
        distance_[index] = kInfinity;
        column_dual_[index] = -kInfinity;
      }
    }
    checkpoint_.count(visits * num_indices_);
    update_duals(visits, reached);
    if (reached == kInfinity) return false;

    int64_t visit = free_visit;
    if (index == kNone) {
      index = scan_cheapest_free(tree_[visit].row);
    } else {
      visit = find_parent(visits, index, reached, dual);
    }
    while (true) {  // reassigns the columns along the path, from its end
      const int64_t path_row = tree_[visit].row, previous = index_of_row_[path_row];
      assign(path_row, index);
      if (path_row == start) return true;
      index = previous;
      checkpoint_.count(visit);
      visit = find_parent(visit, index, tree_[visit].reached, tree_[visit].column_dual);
    }
  }

  // The visit, before the one with number `end`, from which a column was reached at a distance. The distances were
  // computed by the same operations, so that one of them is equal.
  int64_t find_parent(int64_t end, int64_t index, double distance, double dual) const {
    int64_t visit = 0;
    while (visit + 1 < end &&
           (static_cast<double>(costs(tree_[visit].row)[index]) - dual) + tree_[visit].offset != distance) {
      ++visit;
    }
    return visit;
  }

  void update_duals(int64_t visits, double length) {
    for (int64_t v = 0; v < visits; ++v) {
      const Visit& visit = tree_[v];
      const double growth = length == kInfinity ? 0 : length - visit.reached;
      row_dual_[visit.row] += growth;
      if (v > 0) column_dual_[index_of_row_[visit.row]] = visit.column_dual - growth;
    }
  }

  bool too_many_ties() const { return num_ties_ > n_ / 8; }

  static constexpr int64_t kStepsPerRow = 1;  // of augmenting row reduction, on average

  const int64_t n_, num_columns_;
  const bool wide_, square_;
  const int64_t pitch_;
  FreeColumns<T> free_;   // not used in the wide form
  T* const copy_;         // [rows, indices], not used in the wide form
  const T* const costs_;  // [rows, indices]
  double* const row_dual_;
  Checkpoint& checkpoint_;
  double* column_dual_;    // [indices]
  double* distance_;       // [indices]
  double* cheapest_row_;   // [indices] as doubles, so that one kind of vector serves
  int64_t* index_of_row_;  // [rows] of the assigned column
  int64_t* row_of_index_;  // [indices]
  int64_t* column_;        // [indices] the column of the matrix
  int64_t* unassigned_;    // rows
  Visit* tree_;
  int64_t num_indices_ = 0, num_unassigned_ = 0, num_ties_ = 0;
  double lowest_ = 0, highest_ = -kInfinity;  // cost of the matrix; of costs_
};

}  // namespace detr_fast::DETR_FAST_NAMESPACE
DETR_FAST_AFTER_NAMESPACE();

#endif

// The assignment problem by row minima, bids and shortest augmenting paths (R. Jonker and A. Volgenant, "A shortest
// augmenting path algorithm for dense and sparse linear assignment problems", Computing 38, 1987), for few rows and
// many columns: only columns that somebody holds are scanned, from a compact copy; see FreeColumns for the others.
template <typename T>
class FastPath {
 public:
  // A square `cost` must be padded: its rows go on with +inf up to padded(cols).
  FastPath(const Rows<T>& cost, const Assignment& out, Arena& arena)
      : n_(cost.rows),
        num_columns_(cost.cols),
        square_(cost.rows == cost.cols),
        pitch_(square_ ? cost.stride : padded(cost.rows)),
        free_(square_ ? Rows<T>{cost.data, 0, 0, 0} : cost, arena),
        copy_(square_ ? nullptr : static_cast<T*>(arena.take(n_ * pitch_, sizeof(T)))),
        costs_(square_ ? cost.data : copy_),
        row_dual_(out.row_dual) {
    const int64_t width = padded(n_);
    auto* doubles = static_cast<double*>(arena.take(3 * width, sizeof(double)));
    price_ = doubles, distance_ = doubles + width, cheapest_row_ = doubles + 2 * width;
    auto* indices = static_cast<int64_t*>(arena.take(4 * width, sizeof(int64_t)));
    held_ = indices, row_of_held_ = indices + width, column_ = indices + 2 * width, waiting_ = indices + 3 * width;
    tree_ = static_cast<Visit*>(arena.take(n_, sizeof(Visit)));
  }

  Status solve(const Assignment& out) {
    for (int64_t k = 0; k < padded(n_); ++k) {
      price_[k] = 0;
      held_[k] = row_of_held_[k] = kNone;
    }
    const bool valid = square_ ? reduce_columns() : take_row_minima();
    if (!valid) return Status::kInvalid;
    if (square_) transfer_reductions();
    bid_for_waiting();
    for (int64_t w = 0; w < num_waiting_; ++w) {
      if (!augment(waiting_[w])) return Status::kInfeasible;
    }
    for (int64_t i = 0; i < n_; ++i) out.column_of_row[i] = column_[held_[i]];
    if (out.column_dual) {
      for (int64_t j = 0; j < num_columns_; ++j) out.column_dual[j] = 0;
      for (int64_t i = 0; i < n_; ++i) out.column_dual[out.column_of_row[i]] = price_[held_[i]];
    }
    return Status::kSolved;
  }

 private:
  template <typename>
  friend class Certificate;

  struct Visit {  // of a row by the search for a path
    int64_t row;
    double reached, offset;  // its distance; that distance less the row's dual
    double price;            // of the column through which it was reached
  };

  const T* costs(int64_t row) const { return costs_ + row * pitch_; }
  double cheapest_free(int64_t row) { return square_ ? kInfinity : free_.cheapest(row); }

  void hold(int64_t row, int64_t place) {
    held_[row] = place;
    row_of_held_[place] = row;
  }

  // A place among the columns that are held, for the row's cheapest free column.
  int64_t take_cheapest_free(int64_t row) {
    const int64_t col = free_.find(row), place = num_places_++;
    const double highest = free_.take(col, copy_ + place, pitch_);
    highest_ = highest > highest_ ? highest : highest_;
    column_[place] = col;
    return place;
  }

  // Rows whose cheapest column nobody took before them get it. False where a cost is NaN or -inf.
  bool take_row_minima() {
    for (int64_t k = 0; k < n_ * pitch_; ++k) copy_[k] = static_cast<T>(kInfinity);
    if (!free_.start()) return false;
    lowest_ = free_.lowest();
    for (int64_t i = 0; i < n_; ++i) {
      row_dual_[i] = 0;
      if (!free_.cheapest_is_taken(i) && free_.cheapest(i) < kInfinity) {
        row_dual_[i] = free_.cheapest(i);
        hold(i, take_cheapest_free(i));
      } else {
        waiting_[num_waiting_++] = i;
      }
    }
    return true;
  }

  // Every column's price is its least cost; the row that offers it gets it, if it has none. False where a cost is
  // NaN or -inf.
  bool reduce_columns() {
    constexpr int64_t kWidth = Pack<double>::kWidth;
    for (int64_t k = 0; k < padded(n_); ++k) price_[k] = kInfinity;
    const Pack<double> forbidden = Pack<double>::fill(kInfinity), none = Pack<double>::fill(-kInfinity);
    Pack<double> low = forbidden, high = none;
    uint32_t nans = 0;
    int64_t num_forbidden = 0;
    for (int64_t i = 0; i < n_; ++i) {
      const Pack<double> row = Pack<double>::fill(static_cast<double>(i));
      for (int64_t k = 0; k < n_; k += kWidth) {
        const Pack<double> cost = Pack<double>::load(costs(i) + k), price = Pack<double>::load(price_ + k);
        nans |= any_nan(cost, cost);
        where_less(cost, price, row, Pack<double>::load(cheapest_row_ + k)).store(cheapest_row_ + k);
        lesser(cost, price).store(price_ + k);
        low = lesser(cost, low);
        high = greater(where_equal(cost, forbidden, none, cost), high);
        num_forbidden += __builtin_popcount(equal(cost, forbidden));
      }
    }
    const int64_t padding = (n_ + kWidth - 1) / kWidth * kWidth - n_;
    lowest_ = low.lowest();
    highest_ = num_forbidden > n_ * padding ? kInfinity : high.highest();
    if (nans || lowest_ == -kInfinity) return false;
    num_places_ = n_;
    for (int64_t k = n_ - 1; k >= 0; --k) {
      column_[k] = k;
      if (price_[k] == kInfinity) {
        price_[k] = 0;
        continue;
      }
      const auto row = static_cast<int64_t>(cheapest_row_[k]);
      if (held_[row] == kNone) hold(row, k);
    }
    for (int64_t k = n_; k < padded(n_); ++k) price_[k] = 0;
    for (int64_t i = 0; i < n_; ++i) {
      row_dual_[i] = 0;
      if (held_[i] == kNone) waiting_[num_waiting_++] = i;
    }
    return true;
  }

  // A row that has a column lowers its price as far as the row still prefers it.
  void transfer_reductions() {
    for (int64_t i = 0; i < n_; ++i) {
      if (held_[i] == kNone) continue;
      const TwoNearest best = two_nearest(costs(i), price_, n_);
      const double next = best.place == held_[i] ? best.second : best.first;
      if (next == kInfinity) continue;
      row_dual_[i] = next;
      price_[held_[i]] = static_cast<double>(costs(i)[held_[i]]) - next;
    }
  }

  void bid_for_waiting() {
    int64_t bids = kBids * n_, still_waiting = 0;
    for (int64_t w = 0; w < num_waiting_; ++w) {
      int64_t row = waiting_[w];
      while (row != kNone && bids > 0) {
        --bids;
        const int64_t outbid = bid(row);
        if (outbid == row) break;
        row = outbid;
      }
      if (row != kNone) waiting_[still_waiting++] = row;
    }
    num_waiting_ = still_waiting;
  }

  // Gives the row its nearest column, at the price at which its next best is as good. Returns the row that held the
  // column; the row itself where the price would not change; kNone where nobody is left over.
  int64_t bid(int64_t row) {
    const double free = cheapest_free(row);
    const TwoNearest best = two_nearest(costs(row), price_, num_places_);
    if (free <= best.first) {
      if (free == kInfinity) return row;
      row_dual_[row] = free;
      hold(row, take_cheapest_free(row));
      return kNone;
    }
    const double next = free < best.second ? free : best.second;
    const int64_t holder = row_of_held_[best.place];
    if (next == kInfinity || (next == best.first && holder != kNone)) return row;
    row_dual_[row] = next;
    price_[best.place] = static_cast<double>(costs(row)[best.place]) - next;
    if (holder != kNone) held_[holder] = kNone;
    hold(row, best.place);
    return holder;
  }

  // Shortest path from a row without a column to a column without a row. False where there is none.
  bool augment(int64_t start) {
    row_dual_[start] = 0;
    int64_t row = start, visits = 0, place = kNone, free_visit = kNone;
    double reached = 0, price = 0, nearest_free = kInfinity;
    while (row != kNone) {
      const double offset = reached - row_dual_[row], free = cheapest_free(row) + offset;
      tree_[visits] = {row, reached, offset, price};
      if (free < nearest_free) {
        nearest_free = free;
        free_visit = visits;
      }
      const double nearest = visits++ ? relax<false>(costs(row), price_, offset, distance_, num_places_)
                                      : relax<true>(costs(row), price_, offset, distance_, num_places_);
      if (!(nearest < nearest_free)) {
        place = kNone;
        reached = nearest_free;
        break;
      }
      place = find(distance_, nearest);
      reached = nearest;
      price = price_[place];
      row = row_of_held_[place];
      if (row != kNone) {  // no path shall lead there any more
        distance_[place] = kInfinity;
        price_[place] = -kInfinity;
      }
    }
    update_duals(visits, reached);
    if (reached == kInfinity) return false;

    int64_t visit = free_visit;
    if (place == kNone) {
      place = take_cheapest_free(tree_[visit].row);
    } else {
      visit = find_parent(visits, place, reached, price);
    }
    while (true) {  // hands the columns along the path on, from its end
      const int64_t holder = tree_[visit].row, given_up = held_[holder];
      hold(holder, place);
      if (holder == start) return true;
      place = given_up;
      visit = find_parent(visit, place, tree_[visit].reached, tree_[visit].price);
    }
  }

  // The visit, before that with number `end`, from which a place was reached at a distance. Offers were computed by
  // the same operations, so that one is equal.
  int64_t find_parent(int64_t end, int64_t place, double distance, double price) const {
    int64_t visit = 0;
    while (visit + 1 < end &&
           (static_cast<double>(costs(tree_[visit].row)[place]) - price) + tree_[visit].offset != distance) {
      ++visit;
    }
    return visit;
  }

  void update_duals(int64_t visits, double length) {
    for (int64_t v = 0; v < visits; ++v) {
      const Visit& visit = tree_[v];
      const double growth = length == kInfinity ? 0 : length - visit.reached;
      row_dual_[visit.row] += growth;
      if (v > 0) price_[held_[visit.row]] = visit.price - growth;
    }
  }

  static constexpr int64_t kBids = 4;  // a row, on average

  const int64_t n_, num_columns_;
  const bool square_;
  const int64_t pitch_;
  FreeColumns<T> free_;  // not used where the matrix is square
  T* const copy_;        // [rows, places]: what each row pays for the columns that are held
  const T* const costs_;  // the same, or the square matrix itself
  double* const row_dual_;
  double* price_;         // [places] the columns' duals
  double* distance_;      // [places]
  double* cheapest_row_;  // [places] as doubles, so that one kind of vector serves
  int64_t* held_;         // [rows] place of the row's column
  int64_t* row_of_held_;  // [places]
  int64_t* column_;       // [places] which column of the matrix it is
  int64_t* waiting_;      // rows without a column
  Visit* tree_;
  int64_t num_places_ = 0, num_waiting_ = 0;
  double lowest_ = 0, highest_ = -kInfinity;  // cost of all; of those in costs_
};

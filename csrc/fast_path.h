// The assignment problem by row minima, bids and shortest augmenting paths (R. Jonker and A. Volgenant, "A shortest
// augmenting path algorithm for dense and sparse linear assignment problems", Computing 38, 1987). Two forms: where
// rows are many, all columns are scanned ("wide"); where they are few, only those that somebody holds, from a compact
// copy, and FreeColumns answers for the others. What is scanned are "places"; a place stands for a column.
template <typename T>
class FastPath {
 public:
  static bool is_wide(int64_t rows, int64_t cols) { return 2 * rows > cols; }

  // Where it is wide the rows of `cost` must go on with +inf up to padded(cols).
  FastPath(const Rows<T>& cost, const Assignment& out, Arena& arena)
      : n_(cost.rows),
        num_columns_(cost.cols),
        wide_(is_wide(cost.rows, cost.cols)),
        square_(cost.rows == cost.cols),
        pitch_(wide_ ? cost.stride : padded(cost.rows)),
        free_(wide_ ? Rows<T>{cost.data, 0, 0, 0} : cost, arena),
        copy_(wide_ ? nullptr : static_cast<T*>(arena.take(n_ * pitch_, sizeof(T)))),
        costs_(wide_ ? cost.data : copy_),
        row_dual_(out.row_dual) {
    const int64_t width = padded(wide_ ? num_columns_ : n_);
    auto* doubles = static_cast<double*>(arena.take(3 * width, sizeof(double)));
    price_ = doubles, distance_ = doubles + width, cheapest_row_ = doubles + 2 * width;
    auto* indices = static_cast<int64_t*>(arena.take(4 * width, sizeof(int64_t)));
    held_ = indices, row_of_held_ = indices + width, column_ = indices + 2 * width, waiting_ = indices + 3 * width;
    tree_ = static_cast<Visit*>(arena.take(n_, sizeof(Visit)));
    for (int64_t k = 0; k < width; ++k) {
      price_[k] = 0;
      held_[k] = row_of_held_[k] = kNone;
      column_[k] = k;
    }
  }

  // False where it gives up: a cost is NaN or -inf, there is no assignment, or so many ties that it would be in vain.
  bool solve(const Assignment& out) {
    for (int64_t i = 0; i < n_; ++i) row_dual_[i] = 0;
    const bool valid = wide_ ? survey() : free_.start();
    if (!valid) return false;
    if (wide_) {
      hold_row_minima();
    } else {
      claim_row_minima();
    }
    if (square_ && num_waiting_ > n_ / 4) {
      reduce_columns();
      transfer_reductions();
    }
    bid_for_waiting();
    if (num_ties_ > 1 + n_ / 8) return false;
    for (int64_t w = 0; w < num_waiting_; ++w) {
      if (!augment(waiting_[w])) return false;
    }
    for (int64_t i = 0; i < n_; ++i) out.column_of_row[i] = column_[held_[i]];
    if (out.column_dual) {
      for (int64_t j = 0; j < num_columns_; ++j) out.column_dual[j] = 0;
      for (int64_t i = 0; i < n_; ++i) out.column_dual[out.column_of_row[i]] = price_[held_[i]];
    }
    return true;
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
  double cheapest_free(int64_t row) { return wide_ ? kInfinity : free_.cheapest(row); }

  void hold(int64_t row, int64_t place) {
    held_[row] = place;
    row_of_held_[place] = row;
  }

  // A place among the columns that are held, for the row's cheapest free column.
  int64_t take_cheapest_free(int64_t row) {
    const int64_t col = free_.find_cheapest(row), place = num_places_++;
    const double highest = free_.take(col, copy_ + place, pitch_);
    highest_ = highest > highest_ ? highest : highest_;
    column_[place] = col;
    return place;
  }

  // Rows whose cheapest column nobody took before them get it.
  void claim_row_minima() {
    for (int64_t k = 0; k < n_ * pitch_; ++k) copy_[k] = static_cast<T>(kInfinity);
    lowest_ = free_.lowest();
    for (int64_t i = 0; i < n_; ++i) {
      const int64_t col = free_.claim_cheapest(i);
      if (col == kNone) {
        waiting_[num_waiting_++] = i;
      } else {
        row_dual_[i] = free_.cheapest(i);
        column_[num_places_] = col;
        hold(i, num_places_++);
      }
    }
    highest_ = free_.copy_taken(column_, num_places_, copy_, pitch_);
  }

  void hold_row_minima() {
    for (int64_t i = 0; i < n_; ++i) {
      bool nan = false;
      const T low = least(costs(i), num_columns_, &nan);
      const int64_t place = low < kInfinity ? find_first(costs(i), num_columns_, low) : kNone;
      if (place == kNone || row_of_held_[place] != kNone) {
        waiting_[num_waiting_++] = i;
      } else {
        row_dual_[i] = static_cast<double>(low);
        hold(i, place);
      }
    }
  }

  // Looks at the whole matrix once. False where a cost is NaN or -inf.
  bool survey() {
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
        num_forbidden += __builtin_popcount(equal(cost, forbidden));
      }
    }
    const int64_t padding = (num_columns_ + kWidth - 1) / kWidth * kWidth - num_columns_;
    num_places_ = num_columns_;
    lowest_ = low.lowest();
    highest_ = num_forbidden > n_ * padding ? kInfinity : high.highest();
    return !nans && lowest_ != -kInfinity;
  }

  // Starts anew: every column's price is its least cost; the row that offers it gets it, if it has none.
  void reduce_columns() {
    for (int64_t k = 0; k < n_; ++k) {
      price_[k] = kInfinity;
      held_[k] = row_of_held_[k] = kNone;
    }
    for (int64_t i = 0; i < n_; ++i) {
      const Pack<double> row = Pack<double>::fill(static_cast<double>(i));
      for (int64_t k = 0; k < n_; k += Pack<double>::kWidth) {
        const Pack<double> cost = Pack<double>::load(costs(i) + k), price = Pack<double>::load(price_ + k);
        where_less(cost, price, row, Pack<double>::load(cheapest_row_ + k)).store(cheapest_row_ + k);
        lesser(cost, price).store(price_ + k);
      }
    }
    for (int64_t k = n_ - 1; k >= 0; --k) {
      if (price_[k] == kInfinity) {
        price_[k] = 0;
      } else if (const auto row = static_cast<int64_t>(cheapest_row_[k]); held_[row] == kNone) {
        hold(row, k);
      }
    }
    num_waiting_ = 0;
    for (int64_t i = 0; i < n_; ++i) {
      if (held_[i] == kNone) waiting_[num_waiting_++] = i;
    }
  }

  // A row that has a column lowers its price as far as the row still prefers it.
  void transfer_reductions() {
    for (int64_t i = 0; i < n_; ++i) {
      if (held_[i] == kNone) continue;
      const TwoNearest best = two_nearest(costs(i), price_, num_places_);
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
    num_ties_ += next == best.first;
    const int64_t holder = row_of_held_[best.place];
    if (next == kInfinity || (next == best.first && holder != kNone)) return row;
    if (holder == kNone && !square_) {  // columns that are free or newly held have price 0
      row_dual_[row] = best.first;
    } else {
      row_dual_[row] = next;
      price_[best.place] = static_cast<double>(costs(row)[best.place]) - next;
    }
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
      place = find_first(distance_, num_places_, nearest);
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

  static constexpr int64_t kBids = 1;  // a row, on average

  const int64_t n_, num_columns_;
  const bool wide_, square_;
  const int64_t pitch_;
  FreeColumns<T> free_;   // not used where wide
  T* const copy_;         // [rows, places], not used where wide
  const T* const costs_;  // [rows, places]
  double* const row_dual_;
  double* price_;         // [places] the columns' duals
  double* distance_;      // [places]
  double* cheapest_row_;  // [places] as doubles, so that one kind of vector serves
  int64_t* held_;         // [rows] place of the row's column
  int64_t* row_of_held_;  // [places]
  int64_t* column_;       // [places] which column of the matrix it is
  int64_t* waiting_;      // rows without a column
  Visit* tree_;
  int64_t num_places_ = 0, num_waiting_ = 0, num_ties_ = 0;
  double lowest_ = 0, highest_ = -kInfinity;  // cost of all; of those in costs_
};

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
    if (too_many_ties()) return false;
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

  // In fast_path_start.h
  // Rows whose cheapest column nobody took before them get it.
  void claim_row_minima();
  void hold_row_minima();
  // Looks at the whole matrix once. False where a cost is NaN or -inf.
  bool survey();
  // Starts anew: every column's price is its least cost; the row that offers it gets it, if it has none.
  void reduce_columns();
  // A row that has a column lowers its price as far as the row still prefers it.
  void transfer_reductions();

  // In fast_path_search.h
  void bid_for_waiting();
  // Gives the row its nearest column, at the price at which its next best is as good. Returns the row that held the
  // column; the row itself where the price would not change; kNone where nobody is left over.
  int64_t bid(int64_t row);
  // Shortest path from a row without a column to a column without a row. False where there is none.
  bool augment(int64_t start);
  // The visit, before that with number `end`, from which a place was reached at a distance. Offers were computed by
  // the same operations, so that one is equal.
  int64_t find_parent(int64_t end, int64_t place, double distance, double price) const;
  void update_duals(int64_t visits, double length);

  bool too_many_ties() const { return num_ties_ > n_ / 8; }

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

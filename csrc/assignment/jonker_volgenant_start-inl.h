// How a FastPath starts: from the whole matrix to prices, and columns for the rows that do not contend.
template <typename T>
void FastPath<T>::claim_row_minima() {
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

template <typename T>
void FastPath<T>::hold_row_minima() {
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

template <typename T>
bool FastPath<T>::survey() {
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

template <typename T>
void FastPath<T>::reduce_columns() {
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

template <typename T>
void FastPath<T>::transfer_reductions() {
  for (int64_t i = 0; i < n_; ++i) {
    if (held_[i] == kNone) continue;
    const TwoNearest best = two_nearest(costs(i), price_, num_places_);
    const double next = best.place == held_[i] ? best.second : best.first;
    if (next == kInfinity) continue;
    row_dual_[i] = next;
    price_[held_[i]] = static_cast<double>(costs(i)[held_[i]]) - next;
  }
}

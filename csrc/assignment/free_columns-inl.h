// For each row the cheapest column that nobody holds. Such columns have dual 0, so that is all a row needs to know
// of them. The least of each block of a row is kept, and looked for again only where it was taken and is asked for.
template <typename T>
class FreeColumns {
 public:
  FreeColumns(const Rows<T>& cost, Arena& arena)
      : cost_(cost),
        num_blocks_((cost.cols + kBlock - 1) / kBlock),
        taken_(static_cast<T*>(arena.take(padded(cost.cols), sizeof(T)))),
        block_least_(static_cast<T*>(arena.take(cost.rows * num_blocks_, sizeof(T)))),
        least_(static_cast<T*>(arena.take(cost.rows, sizeof(T)))) {}

  // Reads the whole matrix once. False where it holds a NaN or -inf.
  bool start() {
    for (int64_t j = 0; j < cost_.cols; ++j) taken_[j] = 0;
    bool nan = false;
    T lowest = kForbidden;
    for (int64_t i = 0; i < cost_.rows; ++i) {
      const T* row = cost_.data + i * cost_.stride;
      T low = kForbidden;
      for (int64_t b = 0; b < num_blocks_; ++b) {
        const T value = least(row + b * kBlock, length(b), &nan);
        block_least_[i * num_blocks_ + b] = value;
        low = value < low ? value : low;
      }
      least_[i] = low;
      lowest = low < lowest ? low : lowest;
    }
    lowest_ = static_cast<double>(lowest);
    return !nan && lowest != kStale;
  }

  double lowest() const { return lowest_; }  // of the whole matrix

  double cheapest(int64_t row) {
    if (least_[row] == kStale) refresh(row);
    return static_cast<double>(least_[row]);
  }

  // The first free column with the row's cheapest cost, which is finite.
  int64_t find_cheapest(int64_t row) {
    const T value = static_cast<T>(cheapest(row));
    int64_t b = 0;
    while (block_least_[row * num_blocks_ + b] != value) ++b;
    const int64_t begin = b * kBlock;
    return begin + find_masked(cost_.data + row * cost_.stride + begin, taken_ + begin, length(b), value);
  }

  // The first column with the row's cheapest cost, kNone if that was claimed before. To be claimed first is to take it.
  int64_t claim_cheapest(int64_t row) {
    const T value = least_[row];
    if (value == kForbidden) return kNone;
    int64_t b = 0;
    while (block_least_[row * num_blocks_ + b] != value) ++b;
    const int64_t begin = b * kBlock, col = begin + find_first(cost_.data + row * cost_.stride + begin, length(b), value);
    if (taken_[col] != 0) return kNone;
    taken_[col] = kForbidden;
    return col;
  }

  // After all claims: copies the costs of the columns that were taken, in order. Returns the greatest.
  double copy_taken(const int64_t* cols, int64_t count, T* copy, int64_t pitch) {
    T highest = kStale;
    for (int64_t i = 0; i < cost_.rows; ++i) {
      const T* row = cost_.data + i * cost_.stride;
      T* block = block_least_ + i * num_blocks_;
      for (int64_t k = 0; k < count; ++k) {
        const T value = row[cols[k]];
        T& low = block[cols[k] / kBlock];
        if (value <= low) low = least_[i] = kStale;
        copy[i * pitch + k] = value;
        highest = value > highest ? value : highest;
      }
    }
    return static_cast<double>(highest);
  }

  // From now on somebody holds `col`. Its costs go to column[i * pitch] for each row i; returns the greatest.
  double take(int64_t col, T* column, int64_t pitch) {
    taken_[col] = kForbidden;
    T* block = block_least_ + col / kBlock;
    const T* cost = cost_.data + col;
    T highest = kStale;
    for (int64_t i = 0; i < cost_.rows; ++i, cost += cost_.stride, block += num_blocks_, column += pitch) {
      const T value = *cost;
      *column = value;
      *block = value <= *block ? kStale : *block;
      least_[i] = value <= least_[i] ? kStale : least_[i];
      highest = value > highest ? value : highest;
    }
    return static_cast<double>(highest);
  }

 private:
  static constexpr int64_t kBlock = 128;
  static constexpr T kForbidden = static_cast<T>(kInfinity);
  static constexpr T kStale = -kForbidden;  // no valid cost is -inf

  int64_t length(int64_t block) const {
    const int64_t left = cost_.cols - block * kBlock;
    return left < kBlock ? left : kBlock;
  }

  void refresh(int64_t row) {
    T low = kForbidden;
    for (int64_t b = 0; b < num_blocks_; ++b) {
      T& value = block_least_[row * num_blocks_ + b];
      if (value == kStale) {
        value = least_masked(cost_.data + row * cost_.stride + b * kBlock, taken_ + b * kBlock, length(b));
      }
      low = value < low ? value : low;
    }
    least_[row] = low;
  }

  Rows<T> cost_;
  int64_t num_blocks_;
  T* taken_;        // [cols] 0, +inf where somebody holds the column
  T* block_least_;  // [rows, blocks]
  T* least_;        // [rows]
  double lowest_ = 0;
};

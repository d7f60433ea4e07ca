// The cheapest free column of each row, where a column is free if it is not assigned. The dual of a free column is 0,
// so that a row needs to know the cheapest one only. The least cost of each block of a row is stored; it is computed
// again when the block is asked for after the column of that cost was removed.
#include <cstdint>

#include "assignment/arena.h"
#include "assignment/matrix.h"

#if defined(DETR_FAST_ASSIGNMENT_FREE_COLUMNS_INL_H) == defined(DETR_FAST_TOGGLE)
#ifdef DETR_FAST_ASSIGNMENT_FREE_COLUMNS_INL_H
#undef DETR_FAST_ASSIGNMENT_FREE_COLUMNS_INL_H
#else
#define DETR_FAST_ASSIGNMENT_FREE_COLUMNS_INL_H
#endif

#include "assignment/scan-inl.h"
#include "common/target-inl.h"

DETR_FAST_BEFORE_NAMESPACE();
namespace detr_fast::DETR_FAST_NAMESPACE {

template <typename T>
class FreeColumns {
 public:
  FreeColumns(const RowMatrix<T>& cost, Arena& arena)
      : cost_(cost),
        num_blocks_((cost.cols + kBlock - 1) / kBlock),
        mask_(static_cast<T*>(arena.take(padded(cost.cols), sizeof(T)))),
        block_least_(static_cast<T*>(arena.take(cost.rows * num_blocks_, sizeof(T)))),
        least_(static_cast<T*>(arena.take(cost.rows, sizeof(T)))) {}

  // Reads the matrix once. Returns false where it contains NaN or -inf.
  bool start() {
    for (int64_t j = 0; j < cost_.cols; ++j) mask_[j] = 0;
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

  double lowest() const { return lowest_; }  // the least cost of the matrix

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
    return begin + find_masked(cost_.data + row * cost_.stride + begin, mask_ + begin, length(b), value);
  }

  // Removes the first column with the row's cheapest cost; kNone if it was removed before. Blocks are not updated:
  // copy_removed() does it for all columns together.
  int64_t remove_cheapest(int64_t row) {
    const T value = least_[row];
    if (value == kForbidden) return kNone;
    int64_t b = 0;
    while (block_least_[row * num_blocks_ + b] != value) ++b;
    const int64_t begin = b * kBlock;
    const int64_t col = begin + find_first(cost_.data + row * cost_.stride + begin, length(b), value);
    if (mask_[col] != 0) return kNone;
    mask_[col] = kForbidden;
    return col;
  }

  // After every remove_cheapest(): copies the costs of the columns that were removed, in order. Returns the greatest.
  double copy_removed(const int64_t* cols, int64_t count, T* copy, int64_t pitch) {
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

  // Removes `col` and copies its costs to column[i * pitch] for each row i. Returns the greatest.
  double remove(int64_t col, T* column, int64_t pitch) {
    mask_[col] = kForbidden;
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
        value = least_masked(cost_.data + row * cost_.stride + b * kBlock, mask_ + b * kBlock, length(b));
      }
      low = value < low ? value : low;
    }
    least_[row] = low;
  }

  RowMatrix<T> cost_;
  int64_t num_blocks_;
  T* mask_;         // [cols] 0 where the column is free, +inf where it is not
  T* block_least_;  // [rows, blocks]
  T* least_;        // [rows]
  double lowest_ = 0;
};

}  // namespace detr_fast::DETR_FAST_NAMESPACE
DETR_FAST_AFTER_NAMESPACE();

#endif

// Scans over contiguous memory, written once for every instruction set. Arrays that are said to be padded may be read
// and written up to the next multiple of kPadding.
#include <cstdint>

#include "assignment/matrix.h"

#if defined(DETR_FAST_ASSIGNMENT_SCAN_INL_H) == defined(DETR_FAST_TOGGLE)
#ifdef DETR_FAST_ASSIGNMENT_SCAN_INL_H
#undef DETR_FAST_ASSIGNMENT_SCAN_INL_H
#else
#define DETR_FAST_ASSIGNMENT_SCAN_INL_H
#endif

#include "assignment/simd-inl.h"
#include "common/target-inl.h"

DETR_FAST_BEFORE_NAMESPACE();
namespace detr_fast::DETR_FAST_NAMESPACE {

constexpr int64_t kPadding = 8;

inline int64_t padded(int64_t n) { return (n + kPadding - 1) / kPadding * kPadding; }

// The least of p[0..n); sets *nan where there is one.
template <typename T>
T least(const T* p, int64_t n, bool* nan) {
  constexpr int64_t kWidth = Pack<T>::kWidth;
  Pack<T> low = Pack<T>::fill(static_cast<T>(kInfinity)), low2 = low;
  uint32_t nans = 0;
  int64_t k = 0;
  for (; k + 2 * kWidth <= n; k += 2 * kWidth) {
    const Pack<T> a = Pack<T>::load(p + k), b = Pack<T>::load(p + k + kWidth);
    nans |= any_nan(a, b);
    low = lesser(a, low);
    low2 = lesser(b, low2);
  }
  for (; k < n; k += kWidth) {
    const Pack<T> a = k + kWidth <= n ? Pack<T>::load(p + k) : Pack<T>::load_part(p + k, n - k);
    nans |= any_nan(a, a);
    low = lesser(a, low);
  }
  *nan |= nans != 0;
  return lesser(low, low2).lowest();
}

// The least of p[k] + mask[k]; the mask contains 0 and +inf, and is padded.
template <typename T>
T least_masked(const T* p, const T* mask, int64_t n) {
  constexpr int64_t kWidth = Pack<T>::kWidth;
  Pack<T> low = Pack<T>::fill(static_cast<T>(kInfinity));
  int64_t k = 0;
  for (; k + kWidth <= n; k += kWidth) low = lesser(Pack<T>::load(p + k) + Pack<T>::load(mask + k), low);
  if (k < n) low = lesser(Pack<T>::load_part(p + k, n - k) + Pack<T>::load_part(mask + k, n - k), low);
  return low.lowest();
}

// The first k with p[k] + mask[k] == value; there is one.
template <typename T>
int64_t find_masked(const T* p, const T* mask, int64_t n, T value) {
  constexpr int64_t kWidth = Pack<T>::kWidth;
  const Pack<T> wanted = Pack<T>::fill(value);
  int64_t k = 0;
  for (; k + kWidth <= n; k += kWidth) {
    const uint32_t found = equal(Pack<T>::load(p + k) + Pack<T>::load(mask + k), wanted);
    if (found) return k + lowest_bit(found);
  }
  const Pack<T> rest = Pack<T>::load_part(p + k, n - k) + Pack<T>::load_part(mask + k, n - k);
  return k + lowest_bit(equal(rest, wanted));
}

// The first k with p[k] == value; there is one.
template <typename T>
int64_t find_first(const T* p, int64_t n, T value) {
  constexpr int64_t kWidth = Pack<T>::kWidth;
  const Pack<T> wanted = Pack<T>::fill(value);
  int64_t k = 0;
  for (; k + kWidth <= n; k += kWidth) {
    const uint32_t found = equal(Pack<T>::load(p + k), wanted);
    if (found) return k + lowest_bit(found);
  }
  return k + lowest_bit(equal(Pack<T>::load_part(p + k, n - k), wanted));
}

// distance = costs - duals + offset, or the lesser of that and the previous distance. Returns the least. All arrays are
// padded.
template <bool kFirst, typename T>
double relax(const T* costs, const double* duals, double offset, double* distance, int64_t n) {
  const Pack<double> from = Pack<double>::fill(offset);
  Pack<double> low = Pack<double>::fill(kInfinity);
  for (int64_t k = 0; k < n; k += Pack<double>::kWidth) {
    Pack<double> d = (Pack<double>::load(costs + k) - Pack<double>::load(duals + k)) + from;
    if (!kFirst) d = lesser(d, Pack<double>::load(distance + k));
    d.store(distance + k);
    low = lesser(d, low);
  }
  return low.lowest();
}

struct TwoNearest {
  double first, second;  // second == first where two are equally near
  int64_t index;         // of the first
};

// The two least of costs - duals. Both arrays are padded.
template <typename T>
TwoNearest two_nearest(const T* costs, const double* duals, int64_t n) {
  constexpr int64_t kWidth = Pack<double>::kWidth;
  const auto reduced = [&](int64_t k) { return Pack<double>::load(costs + k) - Pack<double>::load(duals + k); };
  Pack<double> first = Pack<double>::fill(kInfinity), second = first;
  for (int64_t k = 0; k < n; k += kWidth) {
    const Pack<double> d = reduced(k);
    second = lesser(greater(d, first), second);
    first = lesser(d, first);
  }
  const double low = first.lowest();
  if (low == kInfinity) return {low, low, 0};
  int64_t k = 0;
  uint32_t found;
  while (!(found = equal(reduced(k), Pack<double>::fill(low)))) k += kWidth;
  const int lane = lowest_bit(found);
  // The lane of the first has its own second; every other lane has its first.
  const Pack<double> rest = where_equal(Pack<double>::count(), Pack<double>::fill(lane), second, lesser(first, second));
  return {low, rest.lowest(), k + lane};
}

// Whether sums of the costs stay far from overflow. Sums of float costs, taken in double, always do.
inline bool sums_fit(const RowMatrix<float>&) { return true; }

inline bool sums_fit(const RowMatrix<double>& cost) {
  constexpr int64_t kWidth = Pack<double>::kWidth;
  const Pack<double> limit = Pack<double>::fill(1e290), forbidden = Pack<double>::fill(kInfinity);
  const Pack<double> zero = Pack<double>::fill(0);
  uint32_t beyond = 0;
  for (int64_t i = 0; i < cost.rows; ++i) {
    const double* row = cost.data + i * cost.stride;
    for (int64_t j = 0; j < cost.cols; j += kWidth) {
      const int64_t left = cost.cols - j;
      const auto value = left >= kWidth ? Pack<double>::load(row + j) : Pack<double>::load_part(row + j, left);
      const Pack<double> finite = where_equal(value, forbidden, zero, value);
      beyond |= less(limit, finite) | less(finite, zero - limit);
    }
  }
  return beyond == 0;
}

}  // namespace detr_fast::DETR_FAST_NAMESPACE
DETR_FAST_AFTER_NAMESPACE();

#endif

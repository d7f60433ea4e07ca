// Vectors of 16 bytes, by the vector extensions of GCC and Clang, which compile to SSE2 or NEON, or else as arrays.
// It has no include guard: simd-inl.h, the only file to include it, has one.

#include <cstddef>
#include <cstdint>

#include "assignment/matrix.h"

#include "common/target-inl.h"

DETR_FAST_BEFORE_NAMESPACE();
namespace detr_fast::DETR_FAST_NAMESPACE {

template <typename T>
struct Pack {
  static constexpr int64_t kWidth = 16 / sizeof(T);
#ifdef DETR_FAST_GNU
  typedef T Vector __attribute__((vector_size(16)));
  Vector x;

  static Pack fill(T value) { return {Vector{} + value}; }
#else
  T x[kWidth];

  static Pack fill(T value) {
    Pack r;
    for (int64_t k = 0; k < kWidth; ++k) r.x[k] = value;
    return r;
  }
#endif
  static Pack count() {  // 0, 1, 2, ...
    Pack r;
    for (int64_t k = 0; k < kWidth; ++k) r.x[k] = static_cast<T>(k);
    return r;
  }
  template <typename S>
  static Pack load(const S* p) {
    Pack r;
    for (int64_t k = 0; k < kWidth; ++k) r.x[k] = static_cast<T>(p[k]);
    return r;
  }
  template <typename S>
  static Pack load_part(const S* p, int64_t n) {  // the first n, then +inf
    Pack r = fill(static_cast<T>(kInfinity));
    for (int64_t k = 0; k < kWidth && k < n; ++k) r.x[k] = static_cast<T>(p[k]);
    return r;
  }
  void store(T* p) const {
    for (int64_t k = 0; k < kWidth; ++k) p[k] = x[k];
  }
  T lowest() const {
    T r = x[0];
    for (int64_t k = 1; k < kWidth; ++k) r = x[k] < r ? x[k] : r;
    return r;
  }
  T highest() const {
    T r = x[0];
    for (int64_t k = 1; k < kWidth; ++k) r = x[k] > r ? x[k] : r;
    return r;
  }
};

#ifdef DETR_FAST_GNU
// A comparison gives one bit a lane.
template <typename Mask>
uint32_t lane_bits(Mask mask) {
  uint32_t bits = 0;
  for (size_t k = 0; k < sizeof(mask) / sizeof(mask[0]); ++k) bits |= static_cast<uint32_t>(mask[k] & 1) << k;
  return bits;
}

template <typename T>
Pack<T> operator+(Pack<T> a, Pack<T> b) {
  return {a.x + b.x};
}
template <typename T>
Pack<T> operator-(Pack<T> a, Pack<T> b) {
  return {a.x - b.x};
}
// Where one is NaN: the second.
template <typename T>
Pack<T> lesser(Pack<T> a, Pack<T> b) {
  return {a.x < b.x ? a.x : b.x};
}
template <typename T>
Pack<T> greater(Pack<T> a, Pack<T> b) {
  return {a.x > b.x ? a.x : b.x};
}
template <typename T>
uint32_t equal(Pack<T> a, Pack<T> b) {
  return lane_bits(a.x == b.x);
}
template <typename T>
uint32_t less(Pack<T> a, Pack<T> b) {
  return lane_bits(a.x < b.x);
}
template <typename T>
uint32_t any_nan(Pack<T> a, Pack<T> b) {
  return lane_bits((a.x != a.x) | (b.x != b.x));
}
template <typename T>
Pack<T> where_equal(Pack<T> a, Pack<T> b, Pack<T> yes, Pack<T> no) {
  return {a.x == b.x ? yes.x : no.x};
}
template <typename T>
Pack<T> where_less(Pack<T> a, Pack<T> b, Pack<T> yes, Pack<T> no) {
  return {a.x < b.x ? yes.x : no.x};
}
#else
template <typename T, typename Function>
DETR_FAST_INLINE Pack<T> combine(const Pack<T>& a, const Pack<T>& b, const Function& function) {
  Pack<T> r;
  for (int64_t k = 0; k < Pack<T>::kWidth; ++k) r.x[k] = function(a.x[k], b.x[k]);
  return r;
}
// A comparison gives one bit a lane.
template <typename T, typename Function>
DETR_FAST_INLINE uint32_t compare(const Pack<T>& a, const Pack<T>& b, const Function& function) {
  uint32_t bits = 0;
  for (int64_t k = 0; k < Pack<T>::kWidth; ++k) bits |= static_cast<uint32_t>(function(a.x[k], b.x[k])) << k;
  return bits;
}

template <typename T>
Pack<T> operator+(Pack<T> a, Pack<T> b) {
  return combine(a, b, [](T x, T y) { return x + y; });
}
template <typename T>
Pack<T> operator-(Pack<T> a, Pack<T> b) {
  return combine(a, b, [](T x, T y) { return x - y; });
}
// Where one is NaN: the second.
template <typename T>
Pack<T> lesser(Pack<T> a, Pack<T> b) {
  return combine(a, b, [](T x, T y) { return x < y ? x : y; });
}
template <typename T>
Pack<T> greater(Pack<T> a, Pack<T> b) {
  return combine(a, b, [](T x, T y) { return x > y ? x : y; });
}
template <typename T>
uint32_t equal(Pack<T> a, Pack<T> b) {
  return compare(a, b, [](T x, T y) { return x == y; });
}
template <typename T>
uint32_t less(Pack<T> a, Pack<T> b) {
  return compare(a, b, [](T x, T y) { return x < y; });
}
template <typename T>
uint32_t any_nan(Pack<T> a, Pack<T> b) {
  return compare(a, b, [](T x, T y) { return x != x || y != y; });
}
template <typename T>
Pack<T> where_equal(Pack<T> a, Pack<T> b, Pack<T> yes, Pack<T> no) {
  for (int64_t k = 0; k < Pack<T>::kWidth; ++k) no.x[k] = a.x[k] == b.x[k] ? yes.x[k] : no.x[k];
  return no;
}
template <typename T>
Pack<T> where_less(Pack<T> a, Pack<T> b, Pack<T> yes, Pack<T> no) {
  for (int64_t k = 0; k < Pack<T>::kWidth; ++k) no.x[k] = a.x[k] < b.x[k] ? yes.x[k] : no.x[k];
  return no;
}
#endif

// Transposes a tile: out[k * pitch + j] = in[j * stride + k] for j < kTile, k < lanes; +inf for rows of `in` from
// `rows` on.
constexpr int64_t kTile = 8;

template <typename T>
void transpose_tile(const T* in, std::ptrdiff_t stride, int64_t rows, int64_t lanes, T* out, std::ptrdiff_t pitch) {
  for (int64_t j = 0; j < kTile; ++j) {
    for (int64_t k = 0; k < lanes; ++k) {
      out[k * pitch + j] = j < rows ? in[j * stride + k] : static_cast<T>(kInfinity);
    }
  }
}

}  // namespace detr_fast::DETR_FAST_NAMESPACE
DETR_FAST_AFTER_NAMESPACE();

// A fixed number of adjacent numbers in as many vectors of the instruction set as they fill. The results of all
// operations are the same on every instruction set: sums are added in halves.
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/instruction_set.h"
#ifdef DETR_FAST_X86
#include <immintrin.h>
#endif

#if defined(DETR_FAST_COMMON_LANES_INL_H) == defined(DETR_FAST_TOGGLE)
#ifdef DETR_FAST_COMMON_LANES_INL_H
#undef DETR_FAST_COMMON_LANES_INL_H
#else
#define DETR_FAST_COMMON_LANES_INL_H
#endif

#include "common/target-inl.h"

DETR_FAST_BEFORE_NAMESPACE();
namespace detr_fast::DETR_FAST_NAMESPACE {

#if DETR_FAST_TARGET == DETR_FAST_AVX512
constexpr int kVectorBytes = 64;
#elif DETR_FAST_TARGET == DETR_FAST_AVX2
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

#ifdef DETR_FAST_GNU
constexpr int kWidestLanes = kVectorBytes;
#else
constexpr int kWidestLanes = 0;  // without vectors, numbers are halved down to one
#endif

template <typename T, int kCount, bool kIsVector = kCount == 1 || kCount * sizeof(T) <= kWidestLanes>
struct Lanes;

template <typename T>
struct Lanes<T, 1, true> {
  T vector;

  static DETR_FAST_INLINE Lanes zero() { return {0}; }
  static DETR_FAST_INLINE Lanes load(const T* from) { return {*from}; }
  DETR_FAST_INLINE void store(T* to) const { *to = vector; }
  DETR_FAST_INLINE Lanes operator+(const Lanes& x) const { return {vector + x.vector}; }
  DETR_FAST_INLINE Lanes operator*(const Lanes& x) const { return {vector * x.vector}; }
  DETR_FAST_INLINE Lanes operator*(T x) const { return {vector * x}; }
};

#ifdef DETR_FAST_GNU
template <typename T, int kCount>
struct Lanes<T, kCount, true> {
  typedef T Vector __attribute__((vector_size(kCount * sizeof(T))));
  typedef T Unaligned __attribute__((vector_size(kCount * sizeof(T)), aligned(alignof(T)), may_alias));
  Vector vector;

  static DETR_FAST_INLINE Lanes zero() { return {Vector{}}; }
  static DETR_FAST_INLINE Lanes load(const T* from) { return {*reinterpret_cast<const Unaligned*>(from)}; }
  DETR_FAST_INLINE void store(T* to) const { *reinterpret_cast<Unaligned*>(to) = vector; }
  DETR_FAST_INLINE Lanes operator+(const Lanes& x) const { return {vector + x.vector}; }
  DETR_FAST_INLINE Lanes operator*(const Lanes& x) const { return {vector * x.vector}; }
  DETR_FAST_INLINE Lanes operator*(T x) const { return {vector * x}; }
};
#endif

template <typename T, int kCount>
struct Lanes<T, kCount, false> {
  using Half = Lanes<T, kCount / 2>;
  Half low, high;

  static DETR_FAST_INLINE Lanes zero() { return {Half::zero(), Half::zero()}; }
  static DETR_FAST_INLINE Lanes load(const T* from) { return {Half::load(from), Half::load(from + kCount / 2)}; }
  DETR_FAST_INLINE void store(T* to) const { low.store(to), high.store(to + kCount / 2); }
  DETR_FAST_INLINE Lanes operator+(const Lanes& x) const { return {low + x.low, high + x.high}; }
  DETR_FAST_INLINE Lanes operator*(const Lanes& x) const { return {low * x.low, high * x.high}; }
  DETR_FAST_INLINE Lanes operator*(T x) const { return {low * x, high * x}; }
};

// Adds the two halves, and those of the sum, until it fits into a vector of at most 32 bytes.
template <typename T, int kCount>
DETR_FAST_INLINE auto fold(const Lanes<T, kCount>& x) {
  if constexpr (kCount * sizeof(T) > kVectorBytes) {
    return fold(x.low + x.high);
  } else if constexpr (kCount * sizeof(T) > 32) {
    Lanes<T, kCount / 2> halves[2];
    std::memcpy(halves, &x, sizeof x);
    return halves[0] + halves[1];
  } else {
    return x;
  }
}

// The sums of a, b, c and d, each of which fold() has returned.
template <typename T, int kCount>
DETR_FAST_INLINE Lanes<T, 4> sum_four(const Lanes<T, kCount>& a, const Lanes<T, kCount>& b, const Lanes<T, kCount>& c,
                                      const Lanes<T, kCount>& d) {
#if DETR_FAST_TARGET == DETR_FAST_AVX512 || DETR_FAST_TARGET == DETR_FAST_AVX2
  if constexpr (std::is_same_v<T, float> && kCount == 8) {
    const __m256 ac = _mm256_permute2f128_ps(a.vector, c.vector, 0x20) +  // four numbers of a and four of c
                      _mm256_permute2f128_ps(a.vector, c.vector, 0x31);
    const __m256 bd =
        _mm256_permute2f128_ps(b.vector, d.vector, 0x20) + _mm256_permute2f128_ps(b.vector, d.vector, 0x31);
    const __m256 pairs = _mm256_shuffle_ps(ac, bd, 0x44) + _mm256_shuffle_ps(ac, bd, 0xee);            // aabb ccdd
    const __m256 all = _mm256_shuffle_ps(pairs, pairs, 0x88) + _mm256_shuffle_ps(pairs, pairs, 0xdd);  // ab.. cd..
    return {_mm_movelh_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1))};
  }
  if constexpr (std::is_same_v<T, double> && kCount == 4) {
    const __m256d ac =
        _mm256_permute2f128_pd(a.vector, c.vector, 0x20) + _mm256_permute2f128_pd(a.vector, c.vector, 0x31);
    const __m256d bd =
        _mm256_permute2f128_pd(b.vector, d.vector, 0x20) + _mm256_permute2f128_pd(b.vector, d.vector, 0x31);
    return {_mm256_unpacklo_pd(ac, bd) + _mm256_unpackhi_pd(ac, bd)};
  }
#endif
  T numbers[4][kCount], sums[4];
  a.store(numbers[0]), b.store(numbers[1]), c.store(numbers[2]), d.store(numbers[3]);
  for (int row = 0; row < 4; ++row) {
    for (int half = kCount / 2; half > 0; half /= 2) {
      for (int k = 0; k < half; ++k) numbers[row][k] += numbers[row][k + half];
    }
    sums[row] = numbers[row][0];
  }
  return Lanes<T, 4>::load(sums);
}

}  // namespace detr_fast::DETR_FAST_NAMESPACE
DETR_FAST_AFTER_NAMESPACE();

#endif

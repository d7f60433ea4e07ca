// Vectors of 64 bytes. A comparison gives one bit a lane.
// It has no include guard: simd-inl.h, the only file to include it, has one.

#ifndef __clang__
#pragma GCC diagnostic ignored "-Wuninitialized"  // in GCC's own header, of undefined vectors that are masked out
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cstdint>

#include "assignment/matrix.h"

#ifndef DETR_FAST_TARGET  // opened alone
#define DETR_FAST_TARGET DETR_FAST_AVX512
#endif
#include "common/target-inl.h"

DETR_FAST_BEFORE_NAMESPACE();
namespace detr_fast::DETR_FAST_NAMESPACE {

template <typename T>
struct Pack;

template <>
struct Pack<double> {
  static constexpr int64_t kWidth = 8;
  __m512d x;

  static Pack fill(double value) { return {_mm512_set1_pd(value)}; }
  static Pack count() { return {_mm512_set_pd(7, 6, 5, 4, 3, 2, 1, 0)}; }
  static Pack load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static Pack load(const float* p) { return {_mm512_cvtps_pd(_mm256_loadu_ps(p))}; }
  static Pack load_part(const double* p, int64_t n) {  // the first n, then +inf
    return {_mm512_mask_loadu_pd(_mm512_set1_pd(kInfinity), static_cast<__mmask8>((1u << n) - 1), p)};
  }
  static Pack load_part(const float* p, int64_t n) {
    const __m256 infinity = _mm256_set1_ps(static_cast<float>(kInfinity));
    return {_mm512_cvtps_pd(_mm256_mask_loadu_ps(infinity, static_cast<__mmask8>((1u << n) - 1), p))};
  }
  void store(double* p) const { _mm512_storeu_pd(p, x); }
  double lowest() const { return _mm512_reduce_min_pd(x); }
  double highest() const { return _mm512_reduce_max_pd(x); }
};

template <>
struct Pack<float> {
  static constexpr int64_t kWidth = 16;
  __m512 x;

  static Pack fill(float value) { return {_mm512_set1_ps(value)}; }
  static Pack load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Pack load_part(const float* p, int64_t n) {
    const __m512 infinity = _mm512_set1_ps(static_cast<float>(kInfinity));
    return {_mm512_mask_loadu_ps(infinity, static_cast<__mmask16>((1u << n) - 1), p)};
  }
  void store(float* p) const { _mm512_storeu_ps(p, x); }
  float lowest() const { return _mm512_reduce_min_ps(x); }
};

using Doubles = Pack<double>;
using Floats = Pack<float>;

inline Doubles operator+(Doubles a, Doubles b) { return {_mm512_add_pd(a.x, b.x)}; }
inline Doubles operator-(Doubles a, Doubles b) { return {_mm512_sub_pd(a.x, b.x)}; }
inline Doubles lesser(Doubles a, Doubles b) { return {_mm512_min_pd(a.x, b.x)}; }
inline Doubles greater(Doubles a, Doubles b) { return {_mm512_max_pd(a.x, b.x)}; }
inline uint32_t equal(Doubles a, Doubles b) { return _mm512_cmp_pd_mask(a.x, b.x, _CMP_EQ_OQ); }
inline uint32_t less(Doubles a, Doubles b) { return _mm512_cmp_pd_mask(a.x, b.x, _CMP_LT_OQ); }
inline uint32_t any_nan(Doubles a, Doubles b) { return _mm512_cmp_pd_mask(a.x, b.x, _CMP_UNORD_Q); }
inline Doubles where_equal(Doubles a, Doubles b, Doubles yes, Doubles no) {
  return {_mm512_mask_blend_pd(_mm512_cmp_pd_mask(a.x, b.x, _CMP_EQ_OQ), no.x, yes.x)};
}
inline Doubles where_less(Doubles a, Doubles b, Doubles yes, Doubles no) {
  return {_mm512_mask_blend_pd(_mm512_cmp_pd_mask(a.x, b.x, _CMP_LT_OQ), no.x, yes.x)};
}

inline Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.x, b.x)}; }
inline Floats lesser(Floats a, Floats b) { return {_mm512_min_ps(a.x, b.x)}; }
inline uint32_t equal(Floats a, Floats b) { return _mm512_cmp_ps_mask(a.x, b.x, _CMP_EQ_OQ); }
inline uint32_t any_nan(Floats a, Floats b) { return _mm512_cmp_ps_mask(a.x, b.x, _CMP_UNORD_Q); }

}  // namespace detr_fast::DETR_FAST_NAMESPACE
DETR_FAST_AFTER_NAMESPACE();

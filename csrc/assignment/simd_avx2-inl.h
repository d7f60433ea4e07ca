// Vectors of 32 bytes. A comparison gives one bit a lane.
// It has no include guard: simd-inl.h, the only file to include it, has one.

#include <immintrin.h>
#include <cstdint>

#include "assignment/matrix.h"

#ifndef DETR_FAST_TARGET  // opened alone
#define DETR_FAST_TARGET DETR_FAST_AVX2
#endif
#include "common/target-inl.h"

DETR_FAST_BEFORE_NAMESPACE();
namespace detr_fast::DETR_FAST_NAMESPACE {

template <typename T>
struct Pack;

template <>
struct Pack<double> {
  static constexpr int64_t kWidth = 4;
  __m256d x;

  static Pack fill(double value) { return {_mm256_set1_pd(value)}; }
  static Pack count() { return {_mm256_set_pd(3, 2, 1, 0)}; }
  static Pack load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static Pack load(const float* p) { return {_mm256_cvtps_pd(_mm_loadu_ps(p))}; }
  static Pack load_part(const double* p, int64_t n) {  // the first n, then +inf
    const __m256i wanted = _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_set_epi64x(3, 2, 1, 0));
    return {_mm256_blendv_pd(_mm256_set1_pd(kInfinity), _mm256_maskload_pd(p, wanted), _mm256_castsi256_pd(wanted))};
  }
  static Pack load_part(const float* p, int64_t n) {
    const __m128i wanted = _mm_cmpgt_epi32(_mm_set1_epi32(static_cast<int>(n)), _mm_set_epi32(3, 2, 1, 0));
    const __m128 infinity = _mm_set1_ps(static_cast<float>(kInfinity));
    return {_mm256_cvtps_pd(_mm_blendv_ps(infinity, _mm_maskload_ps(p, wanted), _mm_castsi128_ps(wanted)))};
  }
  void store(double* p) const { _mm256_storeu_pd(p, x); }
  double lowest() const {
    const __m128d half = _mm_min_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
    return _mm_cvtsd_f64(_mm_min_pd(half, _mm_unpackhi_pd(half, half)));
  }
  double highest() const {
    const __m128d half = _mm_max_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
    return _mm_cvtsd_f64(_mm_max_pd(half, _mm_unpackhi_pd(half, half)));
  }
};

template <>
struct Pack<float> {
  static constexpr int64_t kWidth = 8;
  __m256 x;

  static Pack fill(float value) { return {_mm256_set1_ps(value)}; }
  static Pack load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Pack load_part(const float* p, int64_t n) {
    const __m256i lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    const __m256i wanted = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
    const __m256 infinity = _mm256_set1_ps(static_cast<float>(kInfinity));
    return {_mm256_blendv_ps(infinity, _mm256_maskload_ps(p, wanted), _mm256_castsi256_ps(wanted))};
  }
  void store(float* p) const { _mm256_storeu_ps(p, x); }
  float lowest() const {
    __m128 half = _mm_min_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_min_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_min_ss(half, _mm_shuffle_ps(half, half, 1)));
  }
};

using Doubles = Pack<double>;
using Floats = Pack<float>;

inline uint32_t lane_bits(__m256d mask) { return static_cast<uint32_t>(_mm256_movemask_pd(mask)); }
inline uint32_t lane_bits(__m256 mask) { return static_cast<uint32_t>(_mm256_movemask_ps(mask)); }

inline Doubles operator+(Doubles a, Doubles b) { return {_mm256_add_pd(a.x, b.x)}; }
inline Doubles operator-(Doubles a, Doubles b) { return {_mm256_sub_pd(a.x, b.x)}; }
inline Doubles lesser(Doubles a, Doubles b) { return {_mm256_min_pd(a.x, b.x)}; }
inline Doubles greater(Doubles a, Doubles b) { return {_mm256_max_pd(a.x, b.x)}; }
inline uint32_t equal(Doubles a, Doubles b) { return lane_bits(_mm256_cmp_pd(a.x, b.x, _CMP_EQ_OQ)); }
inline uint32_t less(Doubles a, Doubles b) { return lane_bits(_mm256_cmp_pd(a.x, b.x, _CMP_LT_OQ)); }
inline uint32_t any_nan(Doubles a, Doubles b) { return lane_bits(_mm256_cmp_pd(a.x, b.x, _CMP_UNORD_Q)); }
inline Doubles where_equal(Doubles a, Doubles b, Doubles yes, Doubles no) {
  return {_mm256_blendv_pd(no.x, yes.x, _mm256_cmp_pd(a.x, b.x, _CMP_EQ_OQ))};
}
inline Doubles where_less(Doubles a, Doubles b, Doubles yes, Doubles no) {
  return {_mm256_blendv_pd(no.x, yes.x, _mm256_cmp_pd(a.x, b.x, _CMP_LT_OQ))};
}

inline Floats operator+(Floats a, Floats b) { return {_mm256_add_ps(a.x, b.x)}; }
inline Floats lesser(Floats a, Floats b) { return {_mm256_min_ps(a.x, b.x)}; }
inline uint32_t equal(Floats a, Floats b) { return lane_bits(_mm256_cmp_ps(a.x, b.x, _CMP_EQ_OQ)); }
inline uint32_t any_nan(Floats a, Floats b) { return lane_bits(_mm256_cmp_ps(a.x, b.x, _CMP_UNORD_Q)); }

}  // namespace detr_fast::DETR_FAST_NAMESPACE
DETR_FAST_AFTER_NAMESPACE();

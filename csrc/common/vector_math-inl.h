// Elementary functions for loops that the compiler turns into vector code.
// e^x to 1 ulp for x up to 88; below -87, where the result would not be a normal number, 0. NaN stays NaN.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(DETR_FAST_COMMON_VECTOR_MATH_INL_H) == defined(DETR_FAST_TOGGLE)
#ifdef DETR_FAST_COMMON_VECTOR_MATH_INL_H
#undef DETR_FAST_COMMON_VECTOR_MATH_INL_H
#else
#define DETR_FAST_COMMON_VECTOR_MATH_INL_H
#endif

#include "common/target-inl.h"

DETR_FAST_BEFORE_NAMESPACE();
namespace detr_fast::DETR_FAST_NAMESPACE {

DETR_FAST_INLINE float exp_of(float argument) {
  const float x = argument < -87.0f ? -87.0f : argument > 88.0f ? 88.0f : argument;
  constexpr float kRound = 12582912.0f;  // adding 1.5 * 2^23 leaves no bits for a fraction
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  float r = x - n * 0.693359375f;  // ln 2 in two parts, the first exact in a few bits
  r = r + n * 2.12194440e-4f;
  float y = 1.0f / 5040;
  y = y * r + 1.0f / 720;
  y = y * r + 1.0f / 120;
  y = y * r + 1.0f / 24;
  y = y * r + 1.0f / 6;
  y = y * r + 0.5f;
  y = y * r * r + r + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127) << 23;  // the lowest 9 bits of `shifted` are those of n
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return argument < -87.0f ? 0.0f : y * power;
}

// ln(1 + x) for x in [0, 1], by the series of atanh(x / (2 + x)).
DETR_FAST_INLINE float log1p_of(float x) {
  const float s = x / (2.0f + x);
  const float z = s * s;
  float y = 1.0f / 15;
  y = y * z + 1.0f / 13;
  y = y * z + 1.0f / 11;
  y = y * z + 1.0f / 9;
  y = y * z + 1.0f / 7;
  y = y * z + 1.0f / 5;
  y = y * z + 1.0f / 3;
  return 2.0f * s + 2.0f * s * z * y;
}

// ln x of a positive normal number.
DETR_FAST_INLINE float log_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t shifted = bits - 0x3f3504f3u;  // the mantissa then lies in [sqrt(1/2), sqrt(2))
  const auto exponent = static_cast<float>(static_cast<int32_t>(shifted) >> 23);
  const uint32_t mantissa = (shifted & 0x007fffffu) + 0x3f3504f3u;
  float m;
  std::memcpy(&m, &mantissa, sizeof m);
  const float s = (m - 1.0f) / (m + 1.0f);
  const float z = s * s;
  float y = 1.0f / 9;
  y = y * z + 1.0f / 7;
  y = y * z + 1.0f / 5;
  y = y * z + 1.0f / 3;
  return exponent * 0.693359375f + (2.0f * s + (2.0f * s * z * y - exponent * 2.12194440e-4f));
}

DETR_FAST_INLINE double exp_of(double x) { return std::exp(x); }
DETR_FAST_INLINE double log1p_of(double x) { return std::log1p(x); }
DETR_FAST_INLINE double log_of(double x) { return std::log(x); }

// The sigmoid p of a logit, 1 - p, ln p and -ln(1 - p), none of them by a difference that cancels.
template <typename T>
struct Sigmoid {
  T p, complement, log_p, softplus;
};

template <typename T>
DETR_FAST_INLINE Sigmoid<T> sigmoid_of(T x) {
  const T e = exp_of(x < 0 ? x : -x);
  const T large = 1 / (1 + e);
  const T small = e * large;
  const T rest = log1p_of(e);
  return {x < 0 ? small : large, x < 0 ? large : small, (x < 0 ? x : 0) - rest, (x < 0 ? 0 : x) + rest};
}

// p^gamma of a probability whose logarithm is known. kSquare says that gamma is 2, its usual value. The logarithm of 0
// is replaced by a finite one, so that 0^0 is 1.
template <typename T, bool kSquare>
DETR_FAST_INLINE T power_of(T p, T log_p, T gamma) {
  constexpr T kLowest = std::numeric_limits<T>::lowest();
  return kSquare ? p * p : exp_of(gamma * (log_p < kLowest ? kLowest : log_p));
}

// Rows of scores are padded to a multiple of kLanes by kPaddingScore, whose exponential is 0.
constexpr int64_t kLanes = 16;
constexpr float kPaddingScore = -std::numeric_limits<float>::infinity();
inline int64_t padded_scores(int64_t size) { return (size + kLanes - 1) / kLanes * kLanes; }

// Replaces n scores, n a multiple of kLanes, by e^(score - greatest), and returns the sum of these.
template <typename T>
DETR_FAST_INLINE T softmax_sum(T* scores, int64_t n, T* greatest) {
  T top = scores[0];
  DETR_FAST_SIMD_MAX(top)
  for (int64_t i = 0; i < n; ++i) top = scores[i] > top ? scores[i] : top;
  T sum = 0;
  DETR_FAST_SIMD_SUM(sum)
  for (int64_t i = 0; i < n; ++i) sum += scores[i] = exp_of(scores[i] - top);
  *greatest = top;
  return sum;
}

}  // namespace detr_fast::DETR_FAST_NAMESPACE
DETR_FAST_AFTER_NAMESPACE();

#endif

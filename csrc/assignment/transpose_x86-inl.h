// Transposes a tile: out[k * pitch + j] = in[j * stride + k] for j < kTile, k < lanes; +inf for rows of `in` from
// `rows` on.
// It has no include guard: simd-inl.h, the only file to include it, has one.

#include <immintrin.h>
#include <cstddef>
#include <cstdint>

#include "assignment/matrix.h"

#ifndef DETR_FAST_TARGET  // opened alone
#define DETR_FAST_TARGET DETR_FAST_AVX2
#endif
#include "common/target-inl.h"

DETR_FAST_BEFORE_NAMESPACE();
namespace detr_fast::DETR_FAST_NAMESPACE {

constexpr int64_t kTile = 8;

inline void transpose_tile(const float* in, std::ptrdiff_t stride, int64_t rows, int64_t lanes, float* out,
                           std::ptrdiff_t pitch) {
  const __m256i wanted =
      _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(lanes)), _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
  __m256 a[8], b[8];
  for (int64_t j = 0; j < 8; ++j) {
    a[j] = j < rows ? _mm256_maskload_ps(in + j * stride, wanted) : _mm256_set1_ps(static_cast<float>(kInfinity));
  }
  for (int j = 0; j < 8; j += 2) {
    b[j] = _mm256_unpacklo_ps(a[j], a[j + 1]);
    b[j + 1] = _mm256_unpackhi_ps(a[j], a[j + 1]);
  }
  for (int j = 0; j < 8; j += 4) {
    a[j] = _mm256_shuffle_ps(b[j], b[j + 2], 0x44);
    a[j + 1] = _mm256_shuffle_ps(b[j], b[j + 2], 0xee);
    a[j + 2] = _mm256_shuffle_ps(b[j + 1], b[j + 3], 0x44);
    a[j + 3] = _mm256_shuffle_ps(b[j + 1], b[j + 3], 0xee);
  }
  for (int k = 0; k < 4; ++k) {
    if (k < lanes) _mm256_storeu_ps(out + k * pitch, _mm256_permute2f128_ps(a[k], a[k + 4], 0x20));
    if (k + 4 < lanes) _mm256_storeu_ps(out + (k + 4) * pitch, _mm256_permute2f128_ps(a[k], a[k + 4], 0x31));
  }
}

inline void transpose_tile(const double* in, std::ptrdiff_t stride, int64_t rows, int64_t lanes, double* out,
                           std::ptrdiff_t pitch) {
  const __m256i lane = _mm256_set_epi64x(3, 2, 1, 0);
  for (int64_t k = 0; k < lanes; k += 4) {
    const __m256i wanted = _mm256_cmpgt_epi64(_mm256_set1_epi64x(lanes - k), lane);
    for (int64_t j = 0; j < kTile; j += 4) {
      __m256d a[4];
      for (int64_t r = 0; r < 4; ++r) {
        a[r] = j + r < rows ? _mm256_maskload_pd(in + (j + r) * stride + k, wanted) : _mm256_set1_pd(kInfinity);
      }
      const __m256d even01 = _mm256_unpacklo_pd(a[0], a[1]), odd01 = _mm256_unpackhi_pd(a[0], a[1]);
      const __m256d even23 = _mm256_unpacklo_pd(a[2], a[3]), odd23 = _mm256_unpackhi_pd(a[2], a[3]);
      const __m256d columns[4] = {
          _mm256_permute2f128_pd(even01, even23, 0x20), _mm256_permute2f128_pd(odd01, odd23, 0x20),
          _mm256_permute2f128_pd(even01, even23, 0x31), _mm256_permute2f128_pd(odd01, odd23, 0x31)};
      for (int64_t c = 0; c < 4 && k + c < lanes; ++c) _mm256_storeu_pd(out + (k + c) * pitch + j, columns[c]);
    }
  }
}

}  // namespace detr_fast::DETR_FAST_NAMESPACE
DETR_FAST_AFTER_NAMESPACE();

// Fused deformable attention, compiled for each instruction set.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "fused_deformable_attention.h"

#if defined(DETR_FAST_FUSED_DEFORMABLE_ATTENTION_INL_H) == defined(DETR_FAST_TOGGLE)
#ifdef DETR_FAST_FUSED_DEFORMABLE_ATTENTION_INL_H
#undef DETR_FAST_FUSED_DEFORMABLE_ATTENTION_INL_H
#else
#define DETR_FAST_FUSED_DEFORMABLE_ATTENTION_INL_H
#endif

#include "common/target-inl.h"
#include "common/vector_math-inl.h"
#include "deformable_attention/sampling-inl.h"

DETR_FAST_BEFORE_NAMESPACE();
namespace detr_fast::DETR_FAST_NAMESPACE {

// The sum of n numbers, n a multiple of kPointLanes, in the same order on every instruction set.
template <typename T>
DETR_FAST_INLINE T sum_of(const T* x, int64_t n) {
  T sums[kPointLanes] = {};
  for (int64_t k = 0; k < n; k += kPointLanes) {
    for (int64_t lane = 0; lane < kPointLanes; ++lane) sums[lane] += x[k + lane];
  }
  for (int64_t half = kPointLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  }
  return sums[0];
}

// Replaces the n scores, padded to a multiple of kPointLanes, by their softmax.
template <typename T>
void softmax(T* scores, int64_t n, int64_t padded) {
  std::fill(scores + n, scores + padded, T(kPaddingScore));
  T top = scores[0];
#pragma omp simd reduction(max : top)
  for (int64_t k = 0; k < padded; ++k) top = scores[k] > top ? scores[k] : top;
#pragma omp simd
  for (int64_t k = 0; k < padded; ++k) scores[k] = exp_of(scores[k] - top);
  const T sum = sum_of(scores, padded);
  for (int64_t k = 0; k < padded; ++k) scores[k] /= sum;
}

template <typename T>
DETR_FAST_INLINE bool is_finite(T x) {
  return x - x == 0;
}

template <typename T>
struct RelativeLocations {
  const DeformableAttention& attention;
  AttentionPoints<T> from;
  AttentionPointsGradient<T> to;  // points [H,B,Q,R,C], head by head

  std::ptrdiff_t query_index(int64_t image, int64_t query) const { return image * attention.queries + query; }

  // Coordinate `k` of the reference point of each point. The padding is zero.
  void read_points(const T* point, int64_t k, T* coordinate) const {
    const int64_t step = from.point_levels == 1 ? 0 : from.coordinates;
    int64_t n = 0;
    for (const Level& level : attention.levels) {
      for (const int64_t end = n + level.points; n < end; ++n) coordinate[n] = point[k];
      point += step;
    }
  }

  void read(int64_t image, int64_t query, int64_t head, const PointLevels<T>& levels, Samples<T>* samples) const {
    const std::ptrdiff_t index = query_index(image, query);
    const std::ptrdiff_t begin = (index * attention.heads + head) * attention.points;
    const T* point = from.points + index * from.point_levels * from.coordinates;
    for (int64_t k = 0; k < from.coordinates; ++k) read_points(point, k, samples->scratch[k]);
    for (int axis = 0; axis < 2; ++axis) {
      const T *size = axis == 0 ? levels.width.data() : levels.height.data(), *count = levels.count.data();
      const T *offset = from.offsets + 2 * begin + axis, *center = samples->scratch[axis];
      const T* extent = from.coordinates == 4 ? samples->scratch[2 + axis] : nullptr;
      const T scale = static_cast<T>(from.offset_scale);
      T* location = axis == 0 ? samples->x : samples->y;
      if (extent != nullptr) {
#pragma omp simd
        for (int64_t n = 0; n < attention.points; ++n) {
          location[n] = (center[n] + offset[2 * n] / count[n] * extent[n] * scale) * size[n];
        }
      } else {
#pragma omp simd
        for (int64_t n = 0; n < attention.points; ++n) location[n] = (center[n] + offset[2 * n] / size[n]) * size[n];
      }
    }
    std::copy_n(from.logits + begin, attention.points, samples->weight);
    softmax(samples->weight, attention.points, samples->padded);
    drop_unusable(begin, samples);
  }

  // A point contributes nothing where its offset or its reference point is not finite.
  void drop_unusable(std::ptrdiff_t begin, Samples<T>* samples) const {
    T *x = samples->x, *y = samples->y;
    T *offset_x = samples->scratch[4], *offset_y = samples->scratch[5];
    const T* offset = from.offsets + 2 * begin;
    for (int64_t n = 0; n < attention.points; ++n) {
      bool usable = is_finite(offset[2 * n]) & is_finite(offset[2 * n + 1]);
      for (int64_t k = 0; k < from.coordinates; ++k) usable &= is_finite(samples->scratch[k][n]);
      offset_x[n] = usable ? offset[2 * n] : 0, offset_y[n] = usable ? offset[2 * n + 1] : 0;
      if (usable) continue;
      x[n] = y[n] = std::numeric_limits<T>::quiet_NaN();
      for (int64_t k = 0; k < from.coordinates; ++k) samples->scratch[k][n] = 0;
    }
  }

  void write(int64_t image, int64_t query, int64_t head, const PointLevels<T>& levels, Samples<T>* samples) const {
    const std::ptrdiff_t index = query_index(image, query);
    const std::ptrdiff_t begin = (index * attention.heads + head) * attention.points;
    write_logits(begin, samples);
    for (int axis = 0; axis < 2; ++axis) {
      const T* size = axis == 0 ? levels.width.data() : levels.height.data();
      T* grad = axis == 0 ? samples->grad_x : samples->grad_y;
      T* grad_offset = to.offsets + 2 * begin + axis;
      const T *count = levels.count.data(), *extent = samples->scratch[2 + axis];
      const T scale = static_cast<T>(from.offset_scale);
      if (from.coordinates == 2) {
        for (int64_t n = 0; n < attention.points; ++n) grad_offset[2 * n] = grad[n], grad[n] *= size[n];
      } else {
        for (int64_t n = 0; n < attention.points; ++n) {
          grad[n] *= size[n];
          grad_offset[2 * n] = grad[n] * (extent[n] * scale / count[n]);
        }
      }
    }
    if (to.points == nullptr) return;
    const int64_t size = from.point_levels * from.coordinates;
    write_points(levels, *samples, to.points + (head * attention.images * attention.queries + index) * size);
  }

  // The gradient of a softmax.
  void write_logits(std::ptrdiff_t begin, Samples<T>* samples) const {
    const T *weight = samples->weight, *grad_weight = samples->grad_weight;
    T *product = samples->x, *to_logits = to.logits + begin;  // the locations are not needed any more
    for (int64_t n = 0; n < samples->padded; ++n) product[n] = weight[n] * grad_weight[n];
    const T sum = sum_of(product, samples->padded);
    for (int64_t n = 0; n < attention.points; ++n) to_logits[n] = weight[n] * (grad_weight[n] - sum);
  }

  // The gradient of the reference points, from grad_x and grad_y in units of the levels.
  void write_points(const PointLevels<T>& levels, const Samples<T>& samples, T* grad_point) const {
    std::fill_n(grad_point, from.point_levels * from.coordinates, T(0));
    const int64_t step = from.point_levels == 1 ? 0 : from.coordinates;
    const T scale = static_cast<T>(from.offset_scale);
    int64_t n = 0;
    for (const Level& level : attention.levels) {
      for (const int64_t end = n + level.points; n < end; ++n) {
        grad_point[0] += samples.grad_x[n], grad_point[1] += samples.grad_y[n];
        if (from.coordinates == 2) continue;
        const T factor = scale / levels.count[n];
        grad_point[2] += samples.grad_x[n] * (samples.scratch[4][n] * factor);
        grad_point[3] += samples.grad_y[n] * (samples.scratch[5][n] * factor);
      }
      grad_point += step;
    }
  }
};

template <typename T>
void fused_deformable_attention(const DeformableAttention& attention, const T* value, const AttentionPoints<T>& points,
                                T* output) {
  const RelativeLocations<T> source = {attention, points, {}};
  for_each_head<T>(attention, 1, [&](int64_t image, int64_t head, Workspace<T>* workspace) {
    attend_head(attention, value, source, image, head, workspace, output);
  });
}

template <typename T>
void fused_deformable_attention_backward(const DeformableAttention& attention, const T* value,
                                         const AttentionPoints<T>& points, const T* grad_output, T* grad_value,
                                         const AttentionPointsGradient<T>& grad_points) {
  // All heads add to the gradient of a point; each writes its part, and the parts are added up head by head.
  const int64_t size = attention.images * attention.queries * points.point_levels * points.coordinates;
  std::vector<T> by_head(grad_points.points == nullptr ? 0 : size * attention.heads);
  AttentionPointsGradient<T> to = grad_points;
  if (grad_points.points != nullptr) to.points = by_head.data();
  const RelativeLocations<T> source = {attention, points, to};
  GradValue<T> to_value(attention, grad_value);
  for_each_head<T>(attention, 3, [&](int64_t image, int64_t head, Workspace<T>* workspace) {
    differentiate_head(attention, value, source, grad_output, image, head, workspace, &to_value);
  });
  if (grad_points.points == nullptr) return;
  std::fill_n(grad_points.points, size, T(0));
  for (int64_t head = 0; head < attention.heads; ++head) {
    const T* part = by_head.data() + head * size;
    for (int64_t k = 0; k < size; ++k) grad_points.points[k] += part[k];
  }
}

}  // namespace detr_fast::DETR_FAST_NAMESPACE
DETR_FAST_AFTER_NAMESPACE();

#endif

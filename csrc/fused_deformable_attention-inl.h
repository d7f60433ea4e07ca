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

// The sum of numbers of which there is a multiple of kPointLanes.
template <typename T>
DETR_FAST_INLINE T sum_of(const T* x, int64_t padded) {
  auto sums = Lanes<T, kPointLanes>::load(x);
  for (int64_t k = kPointLanes; k < padded; k += kPointLanes) sums = sums + Lanes<T, kPointLanes>::load(x + k);
  const auto folded = fold(sums);
  T all[4];
  sum_four(folded, folded, folded, folded).store(all);
  return all[0];
}

// The greatest of numbers of which there is a multiple of kPointLanes.
template <typename T>
DETR_FAST_INLINE T max_of(const T* x, int64_t padded) {
  T tops[kPointLanes];
  std::copy_n(x, kPointLanes, tops);
  for (int64_t begin = kPointLanes; begin < padded; begin += kPointLanes) {
    for (int k = 0; k < kPointLanes; ++k) tops[k] = x[begin + k] > tops[k] ? x[begin + k] : tops[k];
  }
  for (int half = kPointLanes / 2; half > 0; half /= 2) {
    for (int k = 0; k < half; ++k) tops[k] = tops[k + half] > tops[k] ? tops[k + half] : tops[k];
  }
  return tops[0];
}

// The softmax of the scores, which are padded by kPaddingScore.
template <typename T>
void softmax(const T* scores, int64_t padded, T* result) {
  const T top = max_of(scores, padded);
  for_each_lane(padded, [=](int64_t k) DETR_FAST_INLINE_LAMBDA { result[k] = exp_of(scores[k] - top); });
  const T sum = sum_of(result, padded);
  for_each_lane(padded, [=](int64_t k) DETR_FAST_INLINE_LAMBDA { result[k] /= sum; });
}

template <typename T>
DETR_FAST_INLINE bool is_finite(T x) {
  return x - x == 0;
}

// Reference points, offsets from them and logits of the attention weights.
template <typename T>
struct RelativeLocations {
  const DeformableAttention& attention;
  AttentionPoints<T> from;
  AttentionPointsGradient<T> to;  // points [H,B,Q,R,C], head by head

  std::ptrdiff_t query_index(int64_t image, int64_t query) const { return image * attention.queries + query; }
  std::ptrdiff_t first_point(int64_t image, int64_t query, int64_t head) const {
    return (query_index(image, query) * attention.heads + head) * attention.points;
  }

  void read(int64_t image, int64_t query, int64_t head, const PointLevels<T>& levels, Samples<T>* samples) const {
    const std::ptrdiff_t begin = first_point(image, query, head);
    const T* point = from.points + query_index(image, query) * from.point_levels * from.coordinates;
    from.coordinates == 2 ? locate<2>(point, from.offsets + 2 * begin, levels, samples)
                          : locate<4>(point, from.offsets + 2 * begin, levels, samples);
    const T* logits = from.logits + begin;
    if (attention.points != samples->padded) {
      std::copy_n(logits, attention.points, samples->numbers);
      std::fill(samples->numbers + attention.points, samples->numbers + samples->padded, T(kPaddingScore));
      logits = samples->numbers;
    }
    softmax(logits, samples->padded, samples->weight);
  }

  void write(int64_t image, int64_t query, int64_t head, const PointLevels<T>& levels, Samples<T>* samples) const {
    const std::ptrdiff_t begin = first_point(image, query, head);
    write_logits(to.logits + begin, samples);
    from.coordinates == 2 ? write_offsets<2>(to.offsets + 2 * begin, levels, samples)
                          : write_offsets<4>(to.offsets + 2 * begin, levels, samples);
    if (to.points == nullptr) return;
    const std::ptrdiff_t index = head * attention.images * attention.queries + query_index(image, query);
    write_points(levels, *samples, to.points + index * from.point_levels * from.coordinates);
  }

 private:
  // The factors of a box's width and height in `scratch`, and the offsets; 0 where a point contributes nothing.
  static T* extent(Samples<T>* samples, int axis) { return samples->scratch[axis]; }
  static T* offset(Samples<T>* samples, int axis) { return samples->scratch[2 + axis]; }

  // The locations of a query's points. Where an offset or a reference point is not finite, the location is NaN.
  template <int kCoordinates>
  void locate(const T* point, const T* offsets, const PointLevels<T>& levels, Samples<T>* samples) const {
    const int32_t *level = levels.level.data(), step = from.point_levels == 1 ? 0 : kCoordinates;
    const T *width = levels.width.data(), *height = levels.height.data(), *count = levels.count.data();
    const T scale = static_cast<T>(from.offset_scale);
    T *x = samples->x, *y = samples->y, *offset_x = offset(samples, 0), *offset_y = offset(samples, 1);
    T *extent_x = extent(samples, 0), *extent_y = extent(samples, 1);
    offsets = samples->padded_input(offsets, 2, samples->pairs);
    for_each_lane(samples->padded, [=](int64_t n) DETR_FAST_INLINE_LAMBDA {
      const int32_t at = level[n] * step;
      const T center_x = point[at], center_y = point[at + 1], right = offsets[2 * n], down = offsets[2 * n + 1];
      bool usable = is_finite(center_x) & is_finite(center_y) & is_finite(right) & is_finite(down);
      T to_x, to_y;
      if constexpr (kCoordinates == 4) {
        const T box_width = point[at + 2], box_height = point[at + 3];
        usable = usable & is_finite(box_width) & is_finite(box_height);
        extent_x[n] = usable ? box_width : 0, extent_y[n] = usable ? box_height : 0;
        to_x = right / count[n] * box_width * scale, to_y = down / count[n] * box_height * scale;
      } else {
        to_x = right / width[n], to_y = down / height[n];
      }
      offset_x[n] = usable ? right : 0, offset_y[n] = usable ? down : 0;
      x[n] = usable ? (center_x + to_x) * width[n] : std::numeric_limits<T>::quiet_NaN();
      y[n] = usable ? (center_y + to_y) * height[n] : std::numeric_limits<T>::quiet_NaN();
    });
  }

  // The gradient of a softmax.
  void write_logits(T* grad_logits, Samples<T>* samples) const {
    const T *weight = samples->weight, *grad_weight = samples->grad_weight;
    T* product = samples->x;  // the locations are not needed any more
    T* result = samples->padded_output(grad_logits, samples->numbers);
    for_each_lane(samples->padded, [=](int64_t n) DETR_FAST_INLINE_LAMBDA { product[n] = weight[n] * grad_weight[n]; });
    const T sum = sum_of(product, samples->padded);
    for_each_lane(samples->padded,
                  [=](int64_t n) DETR_FAST_INLINE_LAMBDA { result[n] = weight[n] * (grad_weight[n] - sum); });
    samples->finish_output(result, 1, grad_logits);
  }

  // The gradient of the offsets; grad_x and grad_y become those of the locations in units of the level.
  template <int kCoordinates>
  void write_offsets(T* grad_offsets, const PointLevels<T>& levels, Samples<T>* samples) const {
    const T *width = levels.width.data(), *height = levels.height.data(), *count = levels.count.data();
    const T *extent_x = extent(samples, 0), *extent_y = extent(samples, 1);
    const T scale = static_cast<T>(from.offset_scale);
    T *grad_x = samples->grad_x, *grad_y = samples->grad_y;
    T* result = samples->padded_output(grad_offsets, samples->pairs);
    for_each_lane(samples->padded, [=](int64_t n) DETR_FAST_INLINE_LAMBDA {
      const T along_x = grad_x[n] * width[n], along_y = grad_y[n] * height[n];
      if constexpr (kCoordinates == 4) {
        result[2 * n] = along_x * (extent_x[n] * scale / count[n]);
        result[2 * n + 1] = along_y * (extent_y[n] * scale / count[n]);
      } else {
        result[2 * n] = grad_x[n], result[2 * n + 1] = grad_y[n];
      }
      grad_x[n] = along_x, grad_y[n] = along_y;
    });
    samples->finish_output(result, 2, grad_offsets);
  }

  // The gradient of the reference points, from grad_x and grad_y in units of the level.
  void write_points(const PointLevels<T>& levels, Samples<T>& samples, T* grad_point) const {
    std::fill_n(grad_point, from.point_levels * from.coordinates, T(0));
    const int64_t step = from.point_levels == 1 ? 0 : from.coordinates;
    const T *offset_x = offset(&samples, 0), *offset_y = offset(&samples, 1);
    const T scale = static_cast<T>(from.offset_scale);
    for (int64_t n = 0; n < attention.points; ++n) {
      T* to_point = grad_point + levels.level[n] * step;
      to_point[0] += samples.grad_x[n], to_point[1] += samples.grad_y[n];
      if (from.coordinates == 2) continue;
      const T factor = scale / levels.count[n];
      to_point[2] += samples.grad_x[n] * (offset_x[n] * factor);
      to_point[3] += samples.grad_y[n] * (offset_y[n] * factor);
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

// Multi-scale deformable attention at given locations, compiled for each instruction set.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "multi_scale_deformable_attention.h"

#if defined(DETR_FAST_MULTI_SCALE_DEFORMABLE_ATTENTION_INL_H) == defined(DETR_FAST_TOGGLE)
#ifdef DETR_FAST_MULTI_SCALE_DEFORMABLE_ATTENTION_INL_H
#undef DETR_FAST_MULTI_SCALE_DEFORMABLE_ATTENTION_INL_H
#else
#define DETR_FAST_MULTI_SCALE_DEFORMABLE_ATTENTION_INL_H
#endif

#include "common/target-inl.h"
#include "deformable_attention/sampling-inl.h"

DETR_FAST_BEFORE_NAMESPACE();
namespace detr_fast::DETR_FAST_NAMESPACE {

// Locations [B,Q,H,N,2] in fractions of the level, and weights [B,Q,H,N].
template <typename T>
struct GivenLocations {
  int64_t queries, heads, points;
  const T *locations, *weights;
  T *grad_locations, *grad_weights;

  std::ptrdiff_t first_point(int64_t image, int64_t query, int64_t head) const {
    return ((image * queries + query) * heads + head) * points;
  }

  void read(int64_t image, int64_t query, int64_t head, const PointLevels<T>& levels, Samples<T>* samples) const {
    const std::ptrdiff_t begin = first_point(image, query, head);
    const T* location = samples->padded_input(locations + 2 * begin, 2, samples->pairs);
    const T *width = levels.width.data(), *height = levels.height.data();
    T *x = samples->x, *y = samples->y;
    for_each_lane(samples->padded, [=](int64_t n) DETR_FAST_INLINE_LAMBDA {
      x[n] = location[2 * n] * width[n], y[n] = location[2 * n + 1] * height[n];
    });
    std::copy_n(weights + begin, points, samples->weight);
  }

  void write(int64_t image, int64_t query, int64_t head, const PointLevels<T>& levels, Samples<T>* samples) const {
    const std::ptrdiff_t begin = first_point(image, query, head);
    const T *grad_x = samples->grad_x, *grad_y = samples->grad_y;
    const T *width = levels.width.data(), *height = levels.height.data();
    T* to = samples->padded_output(grad_locations + 2 * begin, samples->pairs);
    for_each_lane(samples->padded, [=](int64_t n) DETR_FAST_INLINE_LAMBDA {
      to[2 * n] = grad_x[n] * width[n], to[2 * n + 1] = grad_y[n] * height[n];
    });
    samples->finish_output(to, 2, grad_locations + 2 * begin);
    std::copy_n(samples->grad_weight, points, grad_weights + begin);
  }
};

template <typename T>
void multi_scale_deformable_attention(const DeformableAttention& attention, const T* value, const T* locations,
                                      const T* weights, T* output) {
  const GivenLocations<T> source = {attention.queries, attention.heads, attention.points, locations,
                                    weights,           nullptr,         nullptr};
  for_each_head<T>(attention, 1, [&](int64_t image, int64_t head, Workspace<T>* workspace) {
    attend_head(attention, value, source, image, head, workspace, output);
  });
}

template <typename T>
void multi_scale_deformable_attention_backward(const DeformableAttention& attention, const T* value, const T* locations,
                                               const T* weights, const T* grad_output, T* grad_value, T* grad_locations,
                                               T* grad_weights) {
  const GivenLocations<T> source = {attention.queries, attention.heads, attention.points, locations,
                                    weights,           grad_locations,  grad_weights};
  GradValue<T> to_value(attention, grad_value);
  for_each_head<T>(attention, 3, [&](int64_t image, int64_t head, Workspace<T>* workspace) {
    differentiate_head(attention, value, source, grad_output, image, head, workspace, &to_value);
  });
}

}  // namespace detr_fast::DETR_FAST_NAMESPACE
DETR_FAST_AFTER_NAMESPACE();

#endif

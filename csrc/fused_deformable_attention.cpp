#include "fused_deformable_attention.h"

#include <stdexcept>
#include <string>

#define DETR_FAST_TARGET_INCLUDE "fused_deformable_attention-inl.h"
#include "common/foreach_target.h"

namespace detr_fast {
namespace {

template <typename T>
void check(const DeformableAttention& attention, const AttentionPoints<T>& points) {
  if (points.point_levels != 1 && points.point_levels != static_cast<int64_t>(attention.levels.size())) {
    throw std::invalid_argument("points must be given once, or for each of " + std::to_string(attention.levels.size()) +
                                " levels, got " + std::to_string(points.point_levels));
  }
  if (points.coordinates != 2 && points.coordinates != 4) {
    throw std::invalid_argument("points must have 2 or 4 coordinates, got " + std::to_string(points.coordinates));
  }
}

}  // namespace

template <typename T>
void fused_deformable_attention(const DeformableAttention& attention, const T* value, const AttentionPoints<T>& points,
                                T* output) {
  check(attention, points);
  DETR_FAST_DISPATCH(fused_deformable_attention<T>)(attention, value, points, output);
}

template <typename T>
void fused_deformable_attention_backward(const DeformableAttention& attention, const T* value,
                                         const AttentionPoints<T>& points, const T* grad_output, T* grad_value,
                                         const AttentionPointsGradient<T>& grad_points) {
  check(attention, points);
  DETR_FAST_DISPATCH(fused_deformable_attention_backward<T>)
  (attention, value, points, grad_output, grad_value, grad_points);
}

template void fused_deformable_attention(const DeformableAttention&, const float*, const AttentionPoints<float>&,
                                         float*);
template void fused_deformable_attention(const DeformableAttention&, const double*, const AttentionPoints<double>&,
                                         double*);
template void fused_deformable_attention_backward(const DeformableAttention&, const float*,
                                                  const AttentionPoints<float>&, const float*, float*,
                                                  const AttentionPointsGradient<float>&);
template void fused_deformable_attention_backward(const DeformableAttention&, const double*,
                                                  const AttentionPoints<double>&, const double*, double*,
                                                  const AttentionPointsGradient<double>&);

}  // namespace detr_fast

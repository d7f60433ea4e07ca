// Multi-scale deformable attention at offsets from reference points, weighted by a softmax.
#pragma once

#include "deformable_attention/attention.h"

namespace detr_fast {

// Points [B,Q,R,C] with R = 1 or the number of levels and C = 2 or 4 coordinates, offsets [B,Q,H,N,2] and logits
// [B,Q,H,N].
template <typename T>
struct AttentionPoints {
  const T* points;
  int64_t point_levels, coordinates;  // R, C
  const T *offsets, *logits;
  double offset_scale;  // of offsets in units of a box
};

template <typename T>
struct AttentionPointsGradient {
  T* points;  // or nullptr, where it is not needed
  T *offsets, *logits;
};

// Value [B,S,H,D] to output [B,Q,H*D].
template <typename T>
void fused_deformable_attention(const DeformableAttention& attention, const T* value, const AttentionPoints<T>& points,
                                T* output);

template <typename T>
void fused_deformable_attention_backward(const DeformableAttention& attention, const T* value,
                                         const AttentionPoints<T>& points, const T* grad_output, T* grad_value,
                                         const AttentionPointsGradient<T>& grad_points);

}  // namespace detr_fast

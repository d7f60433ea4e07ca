// Values sampled at given locations, weighted and added up, and the gradients.
#pragma once

#include "deformable_attention/attention.h"

namespace detr_fast {

// Value [B,S,H,D], locations [B,Q,H,N,2] and weights [B,Q,H,N] to output [B,Q,H*D].
template <typename T>
void multi_scale_deformable_attention(const DeformableAttention& attention, const T* value, const T* locations,
                                      const T* weights, T* output);

template <typename T>
void multi_scale_deformable_attention_backward(const DeformableAttention& attention, const T* value, const T* locations,
                                               const T* weights, const T* grad_output, T* grad_value, T* grad_locations,
                                               T* grad_weights);

}  // namespace detr_fast

#include "multi_scale_deformable_attention.h"

#define DETR_FAST_TARGET_INCLUDE "multi_scale_deformable_attention-inl.h"
#include "common/foreach_target.h"

namespace detr_fast {

template <typename T>
void multi_scale_deformable_attention(const DeformableAttention& attention, const T* value, const T* locations,
                                      const T* weights, T* output) {
  DETR_FAST_DISPATCH(multi_scale_deformable_attention<T>)(attention, value, locations, weights, output);
}

template <typename T>
void multi_scale_deformable_attention_backward(const DeformableAttention& attention, const T* value, const T* locations,
                                               const T* weights, const T* grad_output, T* grad_value, T* grad_locations,
                                               T* grad_weights) {
  DETR_FAST_DISPATCH(multi_scale_deformable_attention_backward<T>)
  (attention, value, locations, weights, grad_output, grad_value, grad_locations, grad_weights);
}

template void multi_scale_deformable_attention(const DeformableAttention&, const float*, const float*, const float*,
                                               float*);
template void multi_scale_deformable_attention(const DeformableAttention&, const double*, const double*, const double*,
                                               double*);
template void multi_scale_deformable_attention_backward(const DeformableAttention&, const float*, const float*,
                                                        const float*, const float*, float*, float*, float*);
template void multi_scale_deformable_attention_backward(const DeformableAttention&, const double*, const double*,
                                                        const double*, const double*, double*, double*, double*);

}  // namespace detr_fast

#include "set_loss.h"

#define DETR_FAST_TARGET_INCLUDE "set_loss-inl.h"
#include "common/foreach_target.h"

namespace detr_fast {

template <typename T>
void set_loss(const Predictions<T>& logits, const Predictions<T>& boxes, const PackedTargets& targets,
              const Matches& matches, const LossOptions& options, double* losses) {
  DETR_FAST_DISPATCH(set_loss<T>)(logits, boxes, targets, matches, options, losses);
}

template <typename T>
void set_loss_backward(const Predictions<T>& logits, const Predictions<T>& boxes, const PackedTargets& targets,
                       const Matches& matches, const LossOptions& options, const double* upstream, T* grad_logits,
                       T* grad_boxes) {
  DETR_FAST_DISPATCH(set_loss_backward<T>)
  (logits, boxes, targets, matches, options, upstream, grad_logits, grad_boxes);
}

template void set_loss(const Predictions<float>&, const Predictions<float>&, const PackedTargets&, const Matches&,
                       const LossOptions&, double*);
template void set_loss(const Predictions<double>&, const Predictions<double>&, const PackedTargets&, const Matches&,
                       const LossOptions&, double*);
template void set_loss_backward(const Predictions<float>&, const Predictions<float>&, const PackedTargets&,
                                const Matches&, const LossOptions&, const double*, float*, float*);
template void set_loss_backward(const Predictions<double>&, const Predictions<double>&, const PackedTargets&,
                                const Matches&, const LossOptions&, const double*, double*, double*);

}  // namespace detr_fast

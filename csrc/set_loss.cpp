#include "set_loss.h"

#include <stdexcept>
#include <string>

#include "common/checks.h"

#define DETR_FAST_TARGET_INCLUDE "set_loss-inl.h"
#include "common/foreach_target.h"

namespace detr_fast {
namespace {

void check_matches(const Matches& matches, const PackedTargets& targets, int64_t layers, int64_t queries) {
  const int64_t size = layers * matches.groups * targets.count;
  for (int64_t i = 0; i < size; ++i) {
    const int64_t query = matches.query[i];
    if (query >= -1 && query < queries) continue;
    const int64_t layer = i / targets.count / matches.groups, group = i / targets.count % matches.groups;
    const std::string which = "layer " + std::to_string(layer) +
                              (matches.groups > 1 ? ", group " + std::to_string(group) : "") + ", " +
                              describe_target(targets, i % targets.count);
    throw std::invalid_argument(
        which + ": query_index is " + std::to_string(query) +
        (query < 0 ? ", which is below -1" : ", which is not below the number of queries, " + std::to_string(queries)) +
        "; use -1 for a target without a query");
  }
}

template <typename T>
void check(const Predictions<T>& logits, const PackedTargets& targets, const Matches& matches,
           const LossOptions& options) {
  const bool softmax = options.class_loss == ClassLoss::kSoftmax;
  if (softmax && logits.width == 0) throw std::invalid_argument("the softmax needs a logit for no-object");
  check_targets(targets, logits.images, logits.width - softmax);
  check_matches(matches, targets, logits.layers, logits.queries);
}

}  // namespace

template <typename T>
void set_loss(const Predictions<T>& logits, const Predictions<T>& boxes, const PackedTargets& targets,
              const Matches& matches, const LossOptions& options, double* losses) {
  check(logits, targets, matches, options);
  DETR_FAST_DISPATCH(set_loss<T>)(logits, boxes, targets, matches, options, losses);
}

template <typename T>
void set_loss_backward(const Predictions<T>& logits, const Predictions<T>& boxes, const PackedTargets& targets,
                       const Matches& matches, const LossOptions& options, const double* upstream, T* grad_logits,
                       T* grad_boxes) {
  check(logits, targets, matches, options);
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

#include "set_loss.h"

#include <stdexcept>
#include <string>
#include <vector>

#include "common/checks.h"

#define DETR_FAST_TARGET_INCLUDE "set_loss-inl.h"
#include "common/foreach_target.h"

namespace detr_fast {
namespace {

[[noreturn]] void refuse(const Matches& matches, const PackedTargets& targets, int64_t i, const std::string& reason) {
  const int64_t layer = i / targets.count / matches.groups, group = i / targets.count % matches.groups;
  throw std::invalid_argument("layer " + std::to_string(layer) +
                              (matches.groups > 1 ? ", group " + std::to_string(group) : "") + ", " +
                              describe_target(targets, i % targets.count) + ": query_index is " +
                              std::to_string(matches.query[i]) + ", which " + reason);
}

void check_range(const Matches& matches, const PackedTargets& targets, int64_t i, int64_t queries) {
  const int64_t query = matches.query[i];
  if (query >= -1 && query < queries) return;
  const std::string reason =
      query < 0 ? "is below -1" : "is not below the number of queries, " + std::to_string(queries);
  refuse(matches, targets, i, reason + "; use -1 for a target without a query");
}

// The target that each query [L,B,Q] is matched to, -1 for none.
template <typename T>
std::vector<int64_t> targets_of_queries(const Predictions<T>& logits, const PackedTargets& targets,
                                        const Matches& matches, const LossOptions& options) {
  const bool softmax = options.class_loss == ClassLoss::kSoftmax;
  if (softmax && logits.width == 0) throw std::invalid_argument("the softmax needs a logit for no-object");
  check_targets(targets, logits.images, logits.width - softmax);
  const int64_t count = targets.offsets[logits.images];  // rows beyond belong to no image
  for (int64_t first = 0; first < logits.layers * matches.groups * targets.count; first += targets.count) {
    for (int64_t i = first; i < first + count; ++i) check_range(matches, targets, i, logits.queries);
  }
  std::vector<int64_t> target_of_query(logits.layers * logits.images * logits.queries, -1);
  for (int64_t layer = 0; layer < logits.layers; ++layer) {
    for (int64_t group = 0; group < matches.groups; ++group) {
      const int64_t first = (layer * matches.groups + group) * targets.count;
      for (int64_t image = 0; image < logits.images; ++image) {
        int64_t* target = target_of_query.data() + (layer * logits.images + image) * logits.queries;
        for (int64_t t = targets.offsets[image]; t < targets.offsets[image + 1]; ++t) {
          const int64_t query = matches.query[first + t];
          if (query < 0) continue;
          if (target[query] >= 0) {
            refuse(matches, targets, first + t, "another target of the image has; match a query to at most one target");
          }
          target[query] = t;
        }
      }
    }
  }
  return target_of_query;
}

}  // namespace

template <typename T>
void set_loss(const Predictions<T>& logits, const Predictions<T>& boxes, const PackedTargets& targets,
              const Matches& matches, const LossOptions& options, double* losses) {
  const auto target_of_query = targets_of_queries(logits, targets, matches, options);
  DETR_FAST_DISPATCH(set_loss<T>)(logits, boxes, targets, target_of_query.data(), options, losses);
}

template <typename T>
void set_loss_backward(const Predictions<T>& logits, const Predictions<T>& boxes, const PackedTargets& targets,
                       const Matches& matches, const LossOptions& options, const double* upstream, T* grad_logits,
                       T* grad_boxes) {
  const auto target_of_query = targets_of_queries(logits, targets, matches, options);
  DETR_FAST_DISPATCH(set_loss_backward<T>)
  (logits, boxes, targets, target_of_query.data(), options, upstream, grad_logits, grad_boxes);
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

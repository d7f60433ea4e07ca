#include "match_cost.h"

#include "common/checks.h"

#define DETR_FAST_TARGET_INCLUDE "match_cost-inl.h"
#include "common/foreach_target.h"

namespace detr_fast {

template <typename T>
void match_cost(const Predictions<T>& logits, const Predictions<T>& boxes, const PackedTargets& targets,
                const MatchOptions& options, T* cost) {
  check_targets(targets, logits.images, logits.width - !options.focal);
  DETR_FAST_DISPATCH(match_cost<T>)(logits, boxes, targets, options, cost);
}

template void match_cost(const Predictions<float>&, const Predictions<float>&, const PackedTargets&,
                         const MatchOptions&, float*);
template void match_cost(const Predictions<double>&, const Predictions<double>&, const PackedTargets&,
                         const MatchOptions&, double*);

}  // namespace detr_fast

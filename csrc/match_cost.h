// Class, L1 and overlap cost of each target over the queries of its own image.
#pragma once

#include "common/arrays.h"

namespace detr_fast {

enum class IouKind { kGiou, kIou, kIof };

struct MatchOptions {
  bool focal;    // else softmax
  bool corners;  // L1 on corners, else on centres and sizes
  double cost_class, cost_bbox, cost_giou;
  double focal_alpha, focal_gamma, focal_eps;
  double giou_eps, box_scale;
  IouKind iou_kind;
};

// Writes cost [L,T,Q]. Throws std::invalid_argument where offsets or labels are out of range.
template <typename T>
void match_cost(const Predictions<T>& logits, const Predictions<T>& boxes, const PackedTargets& targets,
                const MatchOptions& options, T* cost);

}  // namespace detr_fast

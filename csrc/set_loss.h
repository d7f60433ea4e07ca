// Class, L1 and GIoU loss of matched queries, and their gradients.
#pragma once

#include "common/arrays.h"

namespace detr_fast {

enum class ClassLoss { kSoftmax, kFocal, kVarifocal, kIaBce };

struct LossOptions {
  ClassLoss class_loss;
  double no_object;
  double focal_alpha, focal_gamma;
  double giou_eps, box_scale;
};

struct Matches {
  const int64_t* query;  // [L,G,T], -1 for none; distinct within an image and layer
  int64_t groups;
};

// Writes the sums over each layer, undivided: losses [3,L], in the order class, L1, GIoU. Throws std::invalid_argument
// where offsets, labels or query indices are out of range, or a query has two targets.
template <typename T>
void set_loss(const Predictions<T>& logits, const Predictions<T>& boxes, const PackedTargets& targets,
              const Matches& matches, const LossOptions& options, double* losses);

// Writes the gradients of sum(upstream * losses): grad_logits [L,B,Q,C] and grad_boxes [L,B,Q,4], both contiguous.
// Throws as set_loss() does.
template <typename T>
void set_loss_backward(const Predictions<T>& logits, const Predictions<T>& boxes, const PackedTargets& targets,
                       const Matches& matches, const LossOptions& options, const double* upstream, T* grad_logits,
                       T* grad_boxes);

}  // namespace detr_fast

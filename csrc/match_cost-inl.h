// The matching cost, compiled for each instruction set.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "common/arrays.h"
#include "match_cost.h"

#if defined(DETR_FAST_MATCH_COST_INL_H) == defined(DETR_FAST_TOGGLE)
#ifdef DETR_FAST_MATCH_COST_INL_H
#undef DETR_FAST_MATCH_COST_INL_H
#else
#define DETR_FAST_MATCH_COST_INL_H
#endif

#include "common/box-inl.h"
#include "common/target-inl.h"
#include "common/vector_math-inl.h"

DETR_FAST_BEFORE_NAMESPACE();
namespace detr_fast::DETR_FAST_NAMESPACE {

namespace {

// The boxes of one image's queries, coordinate by coordinate, and the scores of one class.
template <typename T>
struct Queries {
  std::vector<T> box[4], corner[4], area, score;
  std::vector<T> top, inverse_sum;  // of the softmax over each query's scores

  explicit Queries(int64_t count) {
    for (auto* field : {&box[0], &box[1], &box[2], &box[3], &corner[0], &corner[1], &corner[2], &corner[3], &area,
                        &score, &top, &inverse_sum}) {
      field->resize(count);
    }
  }
};

template <typename T>
void read_boxes(const Predictions<T>& boxes, int64_t layer, int64_t image, T scale, Queries<T>* into) {
  for (int64_t q = 0; q < boxes.queries; ++q) {
    const T* box = boxes.row(layer, image, q);
    for (int k = 0; k < 4; ++k) into->box[k][q] = box[k];
    const Box<T> corners = box_of(box, scale);
    into->corner[0][q] = corners.x.low, into->corner[1][q] = corners.y.low;
    into->corner[2][q] = corners.x.high, into->corner[3][q] = corners.y.high;
    into->area[q] = corners.area();
  }
}

template <typename T>
void softmax_rows(const Predictions<T>& logits, int64_t layer, int64_t image, T* scratch, T* top, T* inverse_sum) {
  const int64_t width = padded_scores(logits.width);
  for (int64_t q = 0; q < logits.queries; ++q) {
    const T* row = logits.row(layer, image, q);
    std::copy(row, row + logits.width, scratch);
    std::fill(scratch + logits.width, scratch + width, T(kPaddingScore));
    inverse_sum[q] = 1 / softmax_sum(scratch, width, &top[q]);
  }
}

template <typename T>
void softmax_cost(int64_t n, const T* score, const T* top, const T* inverse_sum, T weight, T* cost) {
  for (int64_t q = 0; q < n; ++q) cost[q] = -weight * exp_of(score[q] - top[q]) * inverse_sum[q];
}

template <typename T, bool kSquare, bool kEps>
void focal_cost(int64_t n, const T* score, const MatchOptions& options, T* cost) {
  const T weight = options.cost_class, alpha = options.focal_alpha, gamma = options.focal_gamma;
  const T eps = options.focal_eps;
  for (int64_t q = 0; q < n; ++q) {
    const Sigmoid<T> s = sigmoid_of(score[q]);
    const T minus_log_p = kEps ? -log_of(s.p + eps) : -s.log_p;
    const T minus_log_complement = kEps ? -log_of(s.complement + eps) : s.softplus;
    const T positive = alpha * power_of<T, kSquare>(s.complement, -s.softplus, gamma) * minus_log_p;
    const T negative = (1 - alpha) * power_of<T, kSquare>(s.p, s.log_p, gamma) * minus_log_complement;
    cost[q] = weight * (positive - negative);
  }
}

template <typename T>
void focal_cost(int64_t n, const T* score, const MatchOptions& options, T* cost) {
  const bool square = options.focal_gamma == 2, eps = options.focal_eps > 0;
  if (square && eps) return focal_cost<T, true, true>(n, score, options, cost);
  if (square) return focal_cost<T, true, false>(n, score, options, cost);
  if (eps) return focal_cost<T, false, true>(n, score, options, cost);
  focal_cost<T, false, false>(n, score, options, cost);
}

// IoF, intersection over foreground, is divided by the area of the predicted box.
template <IouKind kKind, typename T>
DETR_FAST_INLINE T overlap_of(const BoxOverlap<T>& overlap, T predicted_area, T least) {
  if constexpr (kKind == IouKind::kGiou) return overlap.giou();
  if constexpr (kKind == IouKind::kIou) return overlap.iou();
  return BoxOverlap<T>::ratio(overlap.intersection, predicted_area < least ? least : predicted_area);
}

// Adds the box terms of one target to the cost.
template <IouKind kKind, typename T>
void add_box_cost(int64_t n, const Queries<T>& queries, const float* target, const MatchOptions& options, T* cost) {
  const T *x0 = queries.corner[0].data(), *y0 = queries.corner[1].data();
  const T *x1 = queries.corner[2].data(), *y1 = queries.corner[3].data(), *area = queries.area.data();
  const Box<T> target_box = box_of(target, static_cast<T>(options.box_scale));
  const T target_area = target_box.area(), weight = options.cost_giou, least = least_area<T>(options.giou_eps);
  for (int64_t q = 0; q < n; ++q) {
    const Box<T> box = {{x0[q], x1[q]}, {y0[q], y1[q]}};
    const BoxOverlap<T> overlap(box, area[q], target_box, target_area, least);
    cost[q] -= weight * overlap_of<kKind>(overlap, area[q], least);
  }
  // Corners are in units of 1 / box_scale; the L1 cost is not.
  const std::vector<T>* coordinates = options.corners ? queries.corner : queries.box;
  const T unit = options.corners ? options.cost_bbox / options.box_scale : options.cost_bbox;
  const T *c0 = coordinates[0].data(), *c1 = coordinates[1].data(), *c2 = coordinates[2].data();
  const T* c3 = coordinates[3].data();
  const T t0 = options.corners ? target_box.x.low : target[0], t1 = options.corners ? target_box.y.low : target[1];
  const T t2 = options.corners ? target_box.x.high : target[2], t3 = options.corners ? target_box.y.high : target[3];
  for (int64_t q = 0; q < n; ++q) {
    const T sum = std::abs(c0[q] - t0) + std::abs(c1[q] - t1) + std::abs(c2[q] - t2) + std::abs(c3[q] - t3);
    cost[q] += unit * sum;
  }
}

template <typename T>
void add_box_cost(int64_t n, const Queries<T>& queries, const float* target, const MatchOptions& options, T* cost) {
  switch (options.iou_kind) {
    case IouKind::kGiou: return add_box_cost<IouKind::kGiou>(n, queries, target, options, cost);
    case IouKind::kIou: return add_box_cost<IouKind::kIou>(n, queries, target, options, cost);
    case IouKind::kIof: return add_box_cost<IouKind::kIof>(n, queries, target, options, cost);
  }
}

}  // namespace

template <typename T>
void match_cost(const Predictions<T>& logits, const Predictions<T>& boxes, const PackedTargets& targets,
                const MatchOptions& options, T* cost) {
  const int64_t count = logits.queries;
  Queries<T> queries(count);
  std::vector<T> scratch(padded_scores(logits.width));
  for (int64_t layer = 0; layer < logits.layers; ++layer) {
    for (int64_t image = 0; image < logits.images; ++image) {
      const int64_t first = targets.offsets[image], end = targets.offsets[image + 1];
      if (first == end) continue;
      read_boxes(boxes, layer, image, static_cast<T>(options.box_scale), &queries);
      if (!options.focal) {
        softmax_rows(logits, layer, image, scratch.data(), queries.top.data(), queries.inverse_sum.data());
      }
      for (int64_t t = first; t < end; ++t) {
        T* row = cost + (layer * targets.count + t) * count;
        for (int64_t q = 0; q < count; ++q) queries.score[q] = logits.row(layer, image, q)[targets.labels[t]];
        if (options.focal) {
          focal_cost(count, queries.score.data(), options, row);
        } else {
          softmax_cost(count, queries.score.data(), queries.top.data(), queries.inverse_sum.data(),
                       static_cast<T>(options.cost_class), row);
        }
        add_box_cost(count, queries, targets.boxes + 4 * t, options, row);
      }
    }
  }
}

}  // namespace detr_fast::DETR_FAST_NAMESPACE
DETR_FAST_AFTER_NAMESPACE();

#endif

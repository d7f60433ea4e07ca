#include "match_cost.h"

#include <algorithm>
#include <vector>

#include "common/vector_math.h"

namespace detr_fast {
namespace {

// The boxes of one image's queries, coordinate by coordinate, and what each row of scores sums up to.
template <typename T>
struct Queries {
  std::vector<T> box[4], corner[4], area, score, top, inverse_sum;

  explicit Queries(int64_t count) {
    for (auto* field : {&box[0], &box[1], &box[2], &box[3], &corner[0], &corner[1], &corner[2], &corner[3], &area,
                        &score, &top, &inverse_sum}) {
      field->resize(count);
    }
  }
};

template <typename T>
struct Target {
  T box[4], corner[4], area;

  Target(const float* from, T scale) {
    for (int k = 0; k < 4; ++k) box[k] = from[k];
    for (int k = 0; k < 2; ++k) {
      corner[k] = (box[k] - box[k + 2] / 2) * scale;
      corner[k + 2] = (box[k] + box[k + 2] / 2) * scale;
    }
    area = (corner[2] - corner[0]) * (corner[3] - corner[1]);
  }
};

template <typename T>
void read_boxes(const Predictions<T>& boxes, int64_t layer, int64_t image, T scale, Queries<T>* into) {
  for (int64_t q = 0; q < boxes.queries; ++q) {
    const T* box = boxes.row(layer, image, q);
    for (int k = 0; k < 4; ++k) into->box[k][q] = box[k];
    for (int k = 0; k < 2; ++k) {
      into->corner[k][q] = (box[k] - box[k + 2] / 2) * scale;
      into->corner[k + 2][q] = (box[k] + box[k + 2] / 2) * scale;
    }
    into->area[q] = (into->corner[2][q] - into->corner[0][q]) * (into->corner[3][q] - into->corner[1][q]);
  }
}

template <typename T>
DETR_FAST_INLINE void softmax_body(const Predictions<T>& logits, int64_t layer, int64_t image, T* scratch, T* top,
                                   T* inverse_sum) {
  const int64_t width = padded(logits.width);
  std::fill(scratch + logits.width, scratch + width, T(-1e30));
  for (int64_t q = 0; q < logits.queries; ++q) {
    const T* row = logits.row(layer, image, q);
    std::copy(row, row + logits.width, scratch);
    inverse_sum[q] = 1 / softmax_sum(scratch, width, &top[q]);
  }
}

DETR_FAST_DISPATCH
void softmax_rows(const Predictions<float>& logits, int64_t layer, int64_t image, float* scratch, float* top,
                  float* inverse_sum) {
  softmax_body(logits, layer, image, scratch, top, inverse_sum);
}

void softmax_rows(const Predictions<double>& logits, int64_t layer, int64_t image, double* scratch, double* top,
                  double* inverse_sum) {
  softmax_body(logits, layer, image, scratch, top, inverse_sum);
}

template <typename T>
DETR_FAST_INLINE void softmax_cost_body(int64_t n, const T* score, const T* top, const T* inverse_sum, T weight,
                                        T* cost) {
  for (int64_t q = 0; q < n; ++q) cost[q] = -weight * exp_of(score[q] - top[q]) * inverse_sum[q];
}

template <typename T, bool kSquare, bool kEps>
DETR_FAST_INLINE void focal_cost_loop(int64_t n, const T* score, const MatchOptions& options, T* cost) {
  const T weight = options.cost_class, alpha = options.focal_alpha, gamma = options.focal_gamma;
  const T eps = options.focal_eps;
  for (int64_t q = 0; q < n; ++q) {
    const Sigmoid<T> s = sigmoid_of(score[q]);
    const T surprise = kEps ? -log_of(s.p + eps) : -s.log_p;
    const T relief = kEps ? -log_of(s.complement + eps) : s.softplus;
    const T positive = alpha * power_of<T, kSquare>(s.complement, -s.softplus, gamma) * surprise;
    const T negative = (1 - alpha) * power_of<T, kSquare>(s.p, s.log_p, gamma) * relief;
    cost[q] = weight * (positive - negative);
  }
}

template <typename T>
DETR_FAST_INLINE void focal_cost_body(int64_t n, const T* score, const MatchOptions& options, T* cost) {
  const bool square = options.focal_gamma == 2, eps = options.focal_eps > 0;
  if (square && eps) return focal_cost_loop<T, true, true>(n, score, options, cost);
  if (square) return focal_cost_loop<T, true, false>(n, score, options, cost);
  if (eps) return focal_cost_loop<T, false, true>(n, score, options, cost);
  focal_cost_loop<T, false, false>(n, score, options, cost);
}

template <typename T>
DETR_FAST_INLINE T ratio(T part, T whole) {
  return whole == 0 ? T(0) : part / (whole == 0 ? T(1) : whole);
}

template <typename T>
DETR_FAST_INLINE void box_cost_body(int64_t n, const Queries<T>& queries, const Target<T>& target,
                                    const MatchOptions& options, T* cost) {
  const T *x0 = queries.corner[0].data(), *y0 = queries.corner[1].data();
  const T *x1 = queries.corner[2].data(), *y1 = queries.corner[3].data(), *area = queries.area.data();
  const T tx0 = target.corner[0], ty0 = target.corner[1], tx1 = target.corner[2], ty1 = target.corner[3];
  const T weight = options.cost_giou, eps = options.giou_eps;
  for (int64_t q = 0; q < n; ++q) {
    const T wide = std::min(x1[q], tx1) - std::max(x0[q], tx0);
    const T high = std::min(y1[q], ty1) - std::max(y0[q], ty0);
    const T intersection = (wide > 0 ? wide : 0) * (high > 0 ? high : 0);
    T whole = area[q] + target.area - intersection;
    T hull = (std::max(x1[q], tx1) - std::min(x0[q], tx0)) * (std::max(y1[q], ty1) - std::min(y0[q], ty0));
    whole = whole < eps ? eps : whole;
    hull = hull < eps ? eps : hull;
    cost[q] -= weight * (ratio(intersection, whole) - ratio(hull - whole, hull));
  }
  // Corners are in units of box_scale, which is taken out again.
  const std::vector<T>* coordinates = options.corners ? queries.corner : queries.box;
  const T* of_target = options.corners ? target.corner : target.box;
  const T unit = options.corners ? options.cost_bbox / options.box_scale : options.cost_bbox;
  const T *c0 = coordinates[0].data(), *c1 = coordinates[1].data(), *c2 = coordinates[2].data();
  const T* c3 = coordinates[3].data();
  const T t0 = of_target[0], t1 = of_target[1], t2 = of_target[2], t3 = of_target[3];
  for (int64_t q = 0; q < n; ++q) {
    const T sum = std::abs(c0[q] - t0) + std::abs(c1[q] - t1) + std::abs(c2[q] - t2) + std::abs(c3[q] - t3);
    cost[q] += unit * sum;
  }
}

template <typename T>
DETR_FAST_INLINE void cost_body(int64_t n, const Queries<T>& queries, const Target<T>& target,
                                const MatchOptions& options, T* cost) {
  if (options.focal) {
    focal_cost_body(n, queries.score.data(), options, cost);
  } else {
    softmax_cost_body(n, queries.score.data(), queries.top.data(), queries.inverse_sum.data(),
                      static_cast<T>(options.cost_class), cost);
  }
  box_cost_body(n, queries, target, options, cost);
}

DETR_FAST_DISPATCH
void cost_of_target(int64_t n, const Queries<float>& queries, const Target<float>& target, const MatchOptions& options,
                    float* cost) {
  cost_body(n, queries, target, options, cost);
}

void cost_of_target(int64_t n, const Queries<double>& queries, const Target<double>& target,
                    const MatchOptions& options, double* cost) {
  cost_body(n, queries, target, options, cost);
}

}  // namespace

template <typename T>
void match_cost(const Predictions<T>& logits, const Predictions<T>& boxes, const PackedTargets& targets,
                const MatchOptions& options, T* cost) {
  const int64_t count = logits.queries;
  const T scale = options.box_scale;
  Queries<T> queries(count);
  std::vector<T> scratch(padded(logits.width));
  for (int64_t layer = 0; layer < logits.layers; ++layer) {
    for (int64_t image = 0; image < logits.images; ++image) {
      const int32_t first = targets.offsets[image], end = targets.offsets[image + 1];
      if (first == end) continue;
      read_boxes(boxes, layer, image, scale, &queries);
      if (!options.focal) {
        softmax_rows(logits, layer, image, scratch.data(), queries.top.data(), queries.inverse_sum.data());
      }
      for (int32_t t = first; t < end; ++t) {
        for (int64_t q = 0; q < count; ++q) queries.score[q] = logits.row(layer, image, q)[targets.labels[t]];
        cost_of_target(count, queries, Target<T>(targets.boxes + 4 * t, scale), options,
                       cost + (layer * targets.count + t) * count);
      }
    }
  }
}

template void match_cost(const Predictions<float>&, const Predictions<float>&, const PackedTargets&,
                         const MatchOptions&, float*);
template void match_cost(const Predictions<double>&, const Predictions<double>&, const PackedTargets&,
                         const MatchOptions&, double*);

}  // namespace detr_fast

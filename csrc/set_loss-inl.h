// The losses of matched queries and their gradients, compiled for each instruction set.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "common/arrays.h"
#include "set_loss.h"

#if defined(DETR_FAST_SET_LOSS_INL_H) == defined(DETR_FAST_TOGGLE)
#ifdef DETR_FAST_SET_LOSS_INL_H
#undef DETR_FAST_SET_LOSS_INL_H
#else
#define DETR_FAST_SET_LOSS_INL_H
#endif

#include "common/box-inl.h"
#include "common/target-inl.h"
#include "common/vector_math-inl.h"

DETR_FAST_BEFORE_NAMESPACE();
namespace detr_fast::DETR_FAST_NAMESPACE {

namespace {

// In every sigmoid loss the term of a logit whose target is 0 is scale * p^gamma * -ln(1 - p). Some of them treat the
// factor before the logarithm as a constant when they are differentiated.
struct NegativeTerm {
  double scale, gamma;
  bool constant_factor;

  explicit NegativeTerm(const LossOptions& options)
      : scale(options.class_loss == ClassLoss::kFocal       ? 1 - options.focal_alpha
              : options.class_loss == ClassLoss::kVarifocal ? options.focal_alpha
                                                            : 1),
        gamma(options.focal_gamma),
        constant_factor(options.class_loss == ClassLoss::kVarifocal || options.focal_gamma == 0) {}

  template <typename T>
  bool square() const {
    return std::is_same_v<T, float> && gamma == 2;
  }
};

constexpr int64_t kRun = 256;  // the number of terms that are summed in T before they are added to a double

template <typename T, bool kSquare>
double sum_negatives(const T* logits, int64_t n, const NegativeTerm& term) {
  const T gamma = term.gamma;
  double total = 0;
  for (int64_t start = 0; start < n; start += kRun) {
    const int64_t end = std::min(n, start + kRun);
    T sum = 0;
    DETR_FAST_SIMD_SUM(sum)
    for (int64_t i = start; i < end; ++i) {
      const Sigmoid<T> s = sigmoid_of(logits[i]);
      sum += power_of<T, kSquare>(s.p, s.log_p, gamma) * s.softplus;
    }
    total += sum;
  }
  return term.scale * total;
}

template <typename T, bool kSquare, bool kConstantFactor>
void grad_negatives(const T* logits, int64_t n, const NegativeTerm& term, T upstream, T* grad) {
  const T gamma = term.gamma, scale = upstream * static_cast<T>(term.scale);
  for (int64_t i = 0; i < n; ++i) {
    const Sigmoid<T> s = sigmoid_of(logits[i]);
    const T of_factor = kConstantFactor ? 0 : gamma * s.complement * s.softplus;
    grad[i] = scale * power_of<T, kSquare>(s.p, s.log_p, gamma) * (s.p + of_factor);
  }
}

template <typename T>
double sum_negatives(const T* logits, int64_t n, const NegativeTerm& term) {
  return term.square<T>() ? sum_negatives<T, true>(logits, n, term) : sum_negatives<T, false>(logits, n, term);
}

template <typename T>
void grad_negatives(const T* logits, int64_t n, const NegativeTerm& term, T upstream, T* grad) {
  if (term.square<T>() && term.constant_factor) return grad_negatives<T, true, true>(logits, n, term, upstream, grad);
  if (term.square<T>()) return grad_negatives<T, true, false>(logits, n, term, upstream, grad);
  if (term.constant_factor) return grad_negatives<T, false, true>(logits, n, term, upstream, grad);
  grad_negatives<T, false, false>(logits, n, term, upstream, grad);
}

struct ValueAndSlope {
  double value, slope;
};

// The loss of the logit of a matched query's class, and its derivative, where the boxes have this IoU.
inline ValueAndSlope positive_term(double x, double iou, const LossOptions& options) {
  const Sigmoid<double> s = sigmoid_of(x);
  if (options.class_loss == ClassLoss::kFocal) {
    const double minus_log_p = -s.log_p;
    const double factor = options.focal_alpha * std::pow(s.complement, options.focal_gamma);
    const double of_factor = options.focal_gamma == 0 ? 0 : options.focal_gamma * s.p * minus_log_p;
    return {factor * minus_log_p, -factor * (of_factor + s.complement)};
  }
  const auto cross_entropy = [&](double target) { return (1 - target) * s.softplus - target * s.log_p; };
  if (options.class_loss == ClassLoss::kVarifocal) return {iou * cross_entropy(iou), iou * (s.p - iou)};
  const double alpha = options.focal_alpha;
  const double quality = std::max(std::pow(s.p, alpha) * std::pow(iou, 1 - alpha), 0.01);
  return {cross_entropy(quality), s.p - quality};
}

// The cross-entropy of `n` logits and a label; `row` has room for the padded row. Where `grad` is given, writes
// upstream times the gradient there, [n].
template <typename T>
double cross_entropy(const T* logits, int64_t n, int64_t label, T upstream, std::vector<T>* row, T* grad) {
  T* const exponentials = row->data();
  std::copy(logits, logits + n, exponentials);
  std::fill(exponentials + n, exponentials + row->size(), T(kPaddingScore));
  T top;
  const T sum = softmax_sum(exponentials, row->size(), &top);
  if (grad != nullptr) {
    const T scale = upstream / sum;
    for (int64_t i = 0; i < n; ++i) grad[i] = scale * exponentials[i];
    grad[label] -= upstream;
  }
  return std::log(static_cast<double>(sum)) + (static_cast<double>(top) - static_cast<double>(logits[label]));
}

// A predicted box (cx, cy, width, height) and its target: L1 and GIoU with their gradients, and IoU.
struct BoxPair {
  double l1 = 0, giou, iou;
  double l1_slope[4], giou_slope[4];

  template <typename T>
  BoxPair(const T* predicted, const float* target, const LossOptions& options) {
    for (int k = 0; k < 4; ++k) {
      const double difference = static_cast<double>(predicted[k]) - static_cast<double>(target[k]);
      l1 += std::abs(difference);
      l1_slope[k] = (difference > 0) - (difference < 0);
    }
    const double scale = options.box_scale;
    const Box<double> box = box_of(predicted, scale), target_box = box_of(target, scale);
    const BoxOverlap<double> overlap(box, box.area(), target_box, target_box.area(),
                                     least_area<double>(options.giou_eps));
    iou = overlap.iou();
    giou = overlap.giou();
    const GiouGradient corners(box, target_box, overlap, options.giou_eps);
    giou_slope[0] = scale * (corners.x.low + corners.x.high);
    giou_slope[1] = scale * (corners.y.low + corners.y.high);
    giou_slope[2] = scale * (corners.x.high - corners.x.low) / 2;
    giou_slope[3] = scale * (corners.y.high - corners.y.low) / 2;
  }
};

// Calls with a contiguous run of logits, the index of its first query in [B,Q], and its number of queries.
template <typename T, typename Function>
void for_each_run(const Predictions<T>& logits, int64_t layer, Function&& call) {
  const int64_t contiguous = logits.query_stride == logits.width ? logits.queries : 1;
  for (int64_t image = 0; image < logits.images; ++image) {
    for (int64_t q = 0; q < logits.queries; q += contiguous) {
      call(logits.row(layer, image, q), image * logits.queries + q, contiguous);
    }
  }
}

// The losses and gradients of one layer. Queries are counted over all images, [B,Q].
template <typename T>
struct LayerLoss {
  const Predictions<T>& logits;
  const Predictions<T>& boxes;
  const PackedTargets& targets;
  const LossOptions& options;
  int64_t layer;
  const int64_t* target;  // of each query, -1 for none

  int64_t num_queries() const { return logits.images * logits.queries; }
  const T* box(int64_t query) const { return boxes.row(layer, query / logits.queries, query % logits.queries); }
  const T* scores(int64_t query) const { return logits.row(layer, query / logits.queries, query % logits.queries); }
  BoxPair box_pair(int64_t query) const { return {box(query), targets.boxes + 4 * target[query], options}; }

  // The sum of the cross-entropies. Where `grad` is given, writes upstream times the gradient there, [B,Q,C].
  double cross_entropies(double upstream, T* grad) const {
    const int64_t width = logits.width;
    std::vector<T> row(padded_scores(width));
    double total = 0;
    for (int64_t query = 0; query < num_queries(); ++query) {
      const bool matched = target[query] >= 0;
      const int64_t label = matched ? targets.labels[target[query]] : width - 1;
      const double weight = matched ? 1 : options.no_object;
      total += weight * cross_entropy(scores(query), width, label, static_cast<T>(upstream * weight), &row,
                                      grad == nullptr ? nullptr : grad + query * width);
    }
    return total;
  }

  double sigmoid_losses() const {
    const NegativeTerm negative(options);
    double total = 0;
    // The logits between one positive and the next are summed; subtracting the positives afterwards would cancel.
    for_each_run(logits, layer, [&](const T* run, int64_t first, int64_t count) {
      int64_t from = 0;
      for (int64_t k = 0; k < count; ++k) {
        if (target[first + k] < 0) continue;
        const int64_t positive = k * logits.width + targets.labels[target[first + k]];
        total += sum_negatives(run + from, positive - from, negative);
        from = positive + 1;
      }
      total += sum_negatives(run + from, count * logits.width - from, negative);
    });
    for_each_positive([&](int64_t, int64_t, double x, double iou) { total += positive_term(x, iou, options).value; });
    return total;
  }

  void grad_sigmoid_losses(double upstream, T* grad) const {
    const NegativeTerm negative(options);
    for_each_run(logits, layer, [&](const T* run, int64_t first, int64_t count) {
      grad_negatives(run, count * logits.width, negative, static_cast<T>(upstream), grad + first * logits.width);
    });
    for_each_positive([&](int64_t query, int64_t label, double x, double iou) {
      grad[query * logits.width + label] = static_cast<T>(upstream * positive_term(x, iou, options).slope);
    });
  }

  // Calls with each matched query, its label, the logit of that label, and the IoU of the boxes.
  template <typename Function>
  void for_each_positive(Function&& call) const {
    for (int64_t query = 0; query < num_queries(); ++query) {
      if (target[query] < 0) continue;
      const int64_t label = targets.labels[target[query]];
      call(query, label, static_cast<double>(scores(query)[label]), box_pair(query).iou);
    }
  }

  void box_losses(double* l1, double* giou) const {
    for (int64_t query = 0; query < num_queries(); ++query) {
      if (target[query] < 0) continue;
      const BoxPair pair = box_pair(query);
      *l1 += pair.l1;
      *giou += 1 - pair.giou;
    }
  }

  void grad_box_losses(double l1, double giou, T* grad) const {
    std::fill_n(grad, 4 * num_queries(), T(0));
    for (int64_t query = 0; query < num_queries(); ++query) {
      if (target[query] < 0) continue;
      const BoxPair pair = box_pair(query);
      for (int k = 0; k < 4; ++k) {
        grad[4 * query + k] = static_cast<T>(l1 * pair.l1_slope[k] - giou * pair.giou_slope[k]);
      }
    }
  }
};

}  // namespace

// target_of_query is [L,B,Q], -1 for none.
template <typename T>
void set_loss(const Predictions<T>& logits, const Predictions<T>& boxes, const PackedTargets& targets,
              const int64_t* target_of_query, const LossOptions& options, double* losses) {
  std::fill_n(losses, 3 * logits.layers, 0.0);
  for (int64_t l = 0; l < logits.layers; ++l) {
    const LayerLoss<T> layer{logits, boxes, targets, options, l, target_of_query + l * logits.images * logits.queries};
    losses[l] = options.class_loss == ClassLoss::kSoftmax ? layer.cross_entropies(0, nullptr) : layer.sigmoid_losses();
    layer.box_losses(&losses[logits.layers + l], &losses[2 * logits.layers + l]);
  }
}

template <typename T>
void set_loss_backward(const Predictions<T>& logits, const Predictions<T>& boxes, const PackedTargets& targets,
                       const int64_t* target_of_query, const LossOptions& options, const double* upstream,
                       T* grad_logits, T* grad_boxes) {
  const int64_t layers = logits.layers, queries = logits.images * logits.queries;
  for (int64_t l = 0; l < layers; ++l) {
    const LayerLoss<T> layer{logits, boxes, targets, options, l, target_of_query + l * queries};
    T* grad = grad_logits + l * queries * logits.width;
    if (options.class_loss == ClassLoss::kSoftmax) {
      layer.cross_entropies(upstream[l], grad);
    } else {
      layer.grad_sigmoid_losses(upstream[l], grad);
    }
    layer.grad_box_losses(upstream[layers + l], upstream[2 * layers + l], grad_boxes + 4 * l * queries);
  }
}

}  // namespace detr_fast::DETR_FAST_NAMESPACE
DETR_FAST_AFTER_NAMESPACE();

#endif

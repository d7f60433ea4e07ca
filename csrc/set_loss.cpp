#include "set_loss.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/vector_math.h"

namespace detr_fast {
namespace {

// The loss of a logit that is to be 0 is scale * p^gamma * -ln(1 - p) in all the sigmoid families; some of them
// take the factor before the logarithm as a constant when they differentiate.
struct Negative {
  double scale, gamma;
  bool constant_factor;

  explicit Negative(const LossOptions& options)
      : scale(options.class_loss == ClassLoss::kFocal       ? 1 - options.focal_alpha
              : options.class_loss == ClassLoss::kVarifocal ? options.focal_alpha
                                                            : 1),
        gamma(options.focal_gamma),
        constant_factor(options.class_loss == ClassLoss::kVarifocal) {}
};

constexpr int64_t kRun = 256;  // so many terms are added up in T before they are added to a double

template <typename T, bool kSquare>
DETR_FAST_INLINE double sum_negatives_body(const T* logits, int64_t n, const Negative& negative) {
  const T gamma = negative.gamma;
  double total = 0;
  for (int64_t start = 0; start < n; start += kRun) {
    const int64_t end = std::min(n, start + kRun);
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = start; i < end; ++i) {
      const Sigmoid<T> s = sigmoid_of(logits[i]);
      sum += power_of<T, kSquare>(s.p, s.log_p, gamma) * s.softplus;
    }
    total += sum;
  }
  return negative.scale * total;
}

template <typename T, bool kSquare>
DETR_FAST_INLINE void grad_negatives_body(const T* logits, int64_t n, const Negative& negative, T upstream, T* grad) {
  const T gamma = negative.gamma, of_factor = negative.constant_factor ? 0 : gamma;
  const T scale = upstream * static_cast<T>(negative.scale);
  for (int64_t i = 0; i < n; ++i) {
    const Sigmoid<T> s = sigmoid_of(logits[i]);
    grad[i] = scale * power_of<T, kSquare>(s.p, s.log_p, gamma) * (s.p + of_factor * s.complement * s.softplus);
  }
}

DETR_FAST_DISPATCH
double sum_negatives(const float* logits, int64_t n, const Negative& negative) {
  return negative.gamma == 2 ? sum_negatives_body<float, true>(logits, n, negative)
                             : sum_negatives_body<float, false>(logits, n, negative);
}

double sum_negatives(const double* logits, int64_t n, const Negative& negative) {
  return sum_negatives_body<double, false>(logits, n, negative);
}

DETR_FAST_DISPATCH
void grad_negatives(const float* logits, int64_t n, const Negative& negative, float upstream, float* grad) {
  if (negative.gamma == 2) return grad_negatives_body<float, true>(logits, n, negative, upstream, grad);
  grad_negatives_body<float, false>(logits, n, negative, upstream, grad);
}

void grad_negatives(const double* logits, int64_t n, const Negative& negative, double upstream, double* grad) {
  grad_negatives_body<double, false>(logits, n, negative, upstream, grad);
}

struct ValueAndSlope {
  double value, slope;
};

// The loss of a logit that is its query's class, whose box has this IoU.
ValueAndSlope positive_at(double x, double iou, const LossOptions& options) {
  const Sigmoid<double> s = sigmoid_of(x);
  if (options.class_loss == ClassLoss::kFocal) {
    const double surprise = -s.log_p;
    const double factor = options.focal_alpha * std::pow(s.complement, options.focal_gamma);
    return {factor * surprise, -factor * (options.focal_gamma * s.p * surprise + s.complement)};
  }
  if (options.class_loss == ClassLoss::kVarifocal) return {iou * (s.softplus - iou * x), iou * (s.p - iou)};
  const double alpha = options.focal_alpha;
  const double quality = std::max(std::pow(s.p, alpha) * std::pow(iou, 1 - alpha), 0.01);
  return {s.softplus - quality * x, s.p - quality};
}

// Cross-entropy of a padded row against a label; with `grad`, upstream times its gradient as well.
template <typename T>
DETR_FAST_INLINE double cross_entropy_body(const T* row, int64_t n, int64_t label, T upstream, T* grad) {
  T top;
  const T sum = softmax_sum(row, n, &top);
  if (grad != nullptr) {
    const T scale = upstream / sum;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) grad[i] = scale * exp_of(row[i] - top);
    grad[label] -= upstream;
  }
  return std::log(static_cast<double>(sum)) + (static_cast<double>(top) - static_cast<double>(row[label]));
}

DETR_FAST_DISPATCH
double cross_entropy(const float* row, int64_t n, int64_t label, float upstream, float* grad) {
  return cross_entropy_body(row, n, label, upstream, grad);
}

double cross_entropy(const double* row, int64_t n, int64_t label, double upstream, double* grad) {
  return cross_entropy_body(row, n, label, upstream, grad);
}

// A pair of boxes: L1, GIoU, IoU, and the slopes of the first two for the predicted centre and size.
struct BoxPair {
  double l1 = 0, giou = 0, iou = 0;
  double l1_slope[4], giou_slope[4];

  template <typename T>
  BoxPair(const T* predicted, const float* target, const LossOptions& options) {
    for (int k = 0; k < 4; ++k) {
      const double difference = static_cast<double>(predicted[k]) - static_cast<double>(target[k]);
      l1 += std::abs(difference);
      l1_slope[k] = (difference > 0) - (difference < 0);
    }
    Axis x(predicted, target, 0, options.box_scale), y(predicted, target, 1, options.box_scale);
    const double eps = options.giou_eps;
    const double intersection = x.shared() * y.shared();
    const double raw_union = x.size() * y.size() + x.target_size() * y.target_size() - intersection;
    const double raw_hull = x.hull() * y.hull();
    const double whole = std::max(raw_union, eps), hull = std::max(raw_hull, eps);
    iou = whole == 0 ? 0 : intersection / whole;
    giou = iou - (hull == 0 ? 0 : (hull - whole) / hull);

    const double for_intersection = whole == 0 ? 0 : 1 / whole;
    double for_union = (whole == 0 ? 0 : -intersection / (whole * whole)) + (hull == 0 ? 0 : 1 / hull);
    double for_hull = hull == 0 ? 0 : -whole / (hull * hull);
    if (eps > 0 && raw_union < eps) for_union = 0;
    if (eps > 0 && raw_hull < eps) for_hull = 0;
    for (Axis* axis : {&x, &y}) {
      const Axis& other = axis == &x ? y : x;
      for (int end = 0; end < 2; ++end) {
        const double shared = axis->shared_slope(end) * other.shared();
        axis->slope[end] = for_intersection * shared + for_hull * axis->hull_slope(end) * other.hull() +
                           for_union * ((end ? 1 : -1) * other.size() - shared);
      }
    }
    const double scale = options.box_scale;
    giou_slope[0] = scale * (x.slope[0] + x.slope[1]);
    giou_slope[1] = scale * (y.slope[0] + y.slope[1]);
    giou_slope[2] = scale * (x.slope[1] - x.slope[0]) / 2;
    giou_slope[3] = scale * (y.slope[1] - y.slope[0]) / 2;
  }

 private:
  // Both boxes' ends along one axis.
  struct Axis {
    double low, high, target_low, target_high, slope[2];

    template <typename T>
    Axis(const T* predicted, const float* target, int axis, double scale) {
      const double centre = predicted[axis], half = static_cast<double>(predicted[axis + 2]) / 2;
      const double target_centre = target[axis], target_half = static_cast<double>(target[axis + 2]) / 2;
      low = (centre - half) * scale, high = (centre + half) * scale;
      target_low = (target_centre - target_half) * scale, target_high = (target_centre + target_half) * scale;
    }

    double size() const { return high - low; }
    double target_size() const { return target_high - target_low; }
    double overlap() const { return std::min(high, target_high) - std::max(low, target_low); }
    double shared() const { return std::max(overlap(), 0.0); }
    double hull() const { return std::max(high, target_high) - std::min(low, target_low); }
    // For the low end (0) or the high end (1) of the prediction; between equals the slope is halved, as in PyTorch.
    double shared_slope(int end) const {
      if (overlap() < 0) return 0;
      return end ? step(target_high - high) : -step(low - target_low);
    }
    double hull_slope(int end) const { return end ? step(high - target_high) : -step(target_low - low); }
    static double step(double x) { return x > 0 ? 1 : x < 0 ? 0 : 0.5; }
  };
};

// Which pair [G,T] of a layer each query [B,Q] is in, -1 for none.
std::vector<int64_t> pairs_of_queries(const PackedTargets& targets, const Matches& matches, int64_t layer,
                                      int64_t images, int64_t queries) {
  std::vector<int64_t> pair(images * queries, -1);
  for (int64_t group = 0; group < matches.groups; ++group) {
    const int64_t first = (layer * matches.groups + group) * targets.count;
    for (int64_t image = 0; image < images; ++image) {
      for (int64_t t = targets.offsets[image]; t < targets.offsets[image + 1]; ++t) {
        const int64_t query = matches.query[first + t];
        if (query >= 0) pair[image * queries + query] = t;
      }
    }
  }
  return pair;
}

// Calls with a contiguous run of logits, its first query's place in [B,Q], and the number of its queries.
template <typename T, typename Function>
void for_each_run(const Predictions<T>& logits, int64_t layer, Function&& call) {
  const int64_t together = logits.query_stride == logits.width ? logits.queries : 1;
  for (int64_t image = 0; image < logits.images; ++image) {
    for (int64_t q = 0; q < logits.queries; q += together) {
      call(logits.row(layer, image, q), image * logits.queries + q, together);
    }
  }
}

// The losses of one layer, added to `losses`, or with `grad_logits` and `grad_boxes` their gradients.
template <typename T>
struct Layer {
  const Predictions<T>& logits;
  const Predictions<T>& boxes;
  const PackedTargets& targets;
  const LossOptions& options;
  int64_t index;
  std::vector<int64_t> pair;

  const T* predicted(int64_t place) const {
    return boxes.row(index, place / logits.queries, place % logits.queries);
  }
  const T* scores(int64_t place) const { return logits.row(index, place / logits.queries, place % logits.queries); }

  // The class loss; gradients [B,Q,C] are written, where wanted.
  double cross_entropies(double upstream, T* grad) const {
    const int64_t width = logits.width, full = padded(width);
    std::vector<T> row(full, T(-1e30)), slope(grad == nullptr ? 0 : full);
    double total = 0;
    for (int64_t place = 0; place < static_cast<int64_t>(pair.size()); ++place) {
      std::copy(scores(place), scores(place) + width, row.begin());
      const bool matched = pair[place] >= 0;
      const int64_t label = matched ? targets.labels[pair[place]] : width - 1;
      const double weight = matched ? 1 : options.no_object;
      total += weight * cross_entropy(row.data(), full, label, static_cast<T>(upstream * weight),
                                      grad == nullptr ? nullptr : slope.data());
      if (grad != nullptr) std::copy(slope.begin(), slope.begin() + width, grad + place * width);
    }
    return total;
  }

  double sigmoid_losses() const {
    const Negative negative(options);
    double total = 0;
    // The logits between one positive and the next; to subtract the positives' share afterwards would cancel.
    for_each_run(logits, index, [&](const T* run, int64_t first, int64_t count) {
      int64_t from = 0;
      for (int64_t k = 0; k < count; ++k) {
        if (pair[first + k] < 0) continue;
        const int64_t positive = k * logits.width + targets.labels[pair[first + k]];
        total += sum_negatives(run + from, positive - from, negative);
        from = positive + 1;
      }
      total += sum_negatives(run + from, count * logits.width - from, negative);
    });
    for_each_positive(
        [&](int64_t, int64_t, double x, double iou) { total += positive_at(x, iou, options).value; });
    return total;
  }

  void grad_sigmoid_losses(double upstream, T* grad) const {
    const Negative negative(options);
    for_each_run(logits, index, [&](const T* run, int64_t first, int64_t count) {
      grad_negatives(run, count * logits.width, negative, static_cast<T>(upstream), grad + first * logits.width);
    });
    for_each_positive([&](int64_t place, int64_t label, double x, double iou) {
      grad[place * logits.width + label] = static_cast<T>(upstream * positive_at(x, iou, options).slope);
    });
  }

  template <typename Function>
  void for_each_positive(Function&& call) const {
    for (int64_t place = 0; place < static_cast<int64_t>(pair.size()); ++place) {
      if (pair[place] < 0) continue;
      const int64_t label = targets.labels[pair[place]];
      const BoxPair both(predicted(place), targets.boxes + 4 * pair[place], options);
      call(place, label, static_cast<double>(scores(place)[label]), both.iou);
    }
  }

  void box_losses(double* l1, double* giou) const {
    for (int64_t place = 0; place < static_cast<int64_t>(pair.size()); ++place) {
      if (pair[place] < 0) continue;
      const BoxPair both(predicted(place), targets.boxes + 4 * pair[place], options);
      *l1 += both.l1;
      *giou += 1 - both.giou;
    }
  }

  void grad_box_losses(double l1, double giou, T* grad) const {
    std::fill_n(grad, 4 * pair.size(), T(0));
    for (int64_t place = 0; place < static_cast<int64_t>(pair.size()); ++place) {
      if (pair[place] < 0) continue;
      const BoxPair both(predicted(place), targets.boxes + 4 * pair[place], options);
      for (int k = 0; k < 4; ++k) {
        grad[4 * place + k] = static_cast<T>(l1 * both.l1_slope[k] - giou * both.giou_slope[k]);
      }
    }
  }
};

}  // namespace

template <typename T>
void set_loss(const Predictions<T>& logits, const Predictions<T>& boxes, const PackedTargets& targets,
              const Matches& matches, const LossOptions& options, double* losses) {
  std::fill_n(losses, 3 * logits.layers, 0.0);
  for (int64_t l = 0; l < logits.layers; ++l) {
    const Layer<T> layer{logits, boxes, targets, options, l,
                         pairs_of_queries(targets, matches, l, logits.images, logits.queries)};
    losses[l] =
        options.class_loss == ClassLoss::kSoftmax ? layer.cross_entropies(0, nullptr) : layer.sigmoid_losses();
    layer.box_losses(&losses[logits.layers + l], &losses[2 * logits.layers + l]);
  }
}

template <typename T>
void set_loss_backward(const Predictions<T>& logits, const Predictions<T>& boxes, const PackedTargets& targets,
                       const Matches& matches, const LossOptions& options, const double* upstream, T* grad_logits,
                       T* grad_boxes) {
  const int64_t layers = logits.layers, places = logits.images * logits.queries;
  for (int64_t l = 0; l < layers; ++l) {
    const Layer<T> layer{logits, boxes, targets, options, l,
                         pairs_of_queries(targets, matches, l, logits.images, logits.queries)};
    T* grad = grad_logits + l * places * logits.width;
    if (options.class_loss == ClassLoss::kSoftmax) {
      layer.cross_entropies(upstream[l], grad);
    } else {
      layer.grad_sigmoid_losses(upstream[l], grad);
    }
    layer.grad_box_losses(upstream[layers + l], upstream[2 * layers + l], grad_boxes + 4 * l * places);
  }
}

#define DETR_FAST_INSTANTIATE(T)                                                                                   \
  template void set_loss(const Predictions<T>&, const Predictions<T>&, const PackedTargets&, const Matches&,       \
                         const LossOptions&, double*);                                                             \
  template void set_loss_backward(const Predictions<T>&, const Predictions<T>&, const PackedTargets&,              \
                                  const Matches&, const LossOptions&, const double*, T*, T*);
DETR_FAST_INSTANTIATE(float)
DETR_FAST_INSTANTIATE(double)
#undef DETR_FAST_INSTANTIATE

}  // namespace detr_fast

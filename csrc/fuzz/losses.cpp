#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "common/arrays.h"
#include "common/instruction_set.h"
#include "fuzz/cases.h"
#include "match_cost.h"
#include "set_loss.h"

namespace detr_fast {
namespace {

// Predictions [L,B,Q,W] in memory of the order [L,B,Q,W] or [B,Q,L,W].
template <typename T>
Predictions<T> layout(T* data, int64_t layers, int64_t images, int64_t queries, int64_t width, bool layers_inside) {
  if (layers_inside) return {data, layers, images, queries, width, width, queries * layers * width, layers * width};
  return {data, layers, images, queries, width, images * queries * width, queries * width, width};
}

template <typename T>
struct Case {
  int64_t layers, images, queries, classes, groups, count;
  Exact<T> logit_values, box_values;
  Exact<int64_t> labels, query;
  Exact<float> target_boxes;
  Exact<int32_t> offsets;
  Predictions<T> logits, boxes;
  PackedTargets targets;
  Matches matches;
  MatchOptions match_options;
  LossOptions loss_options;
};

template <typename T>
T random_logit(Bytes& bytes, int64_t spread) {
  const double unit = 2 * bytes.unit() - 1;
  switch (spread) {
    case 0: return static_cast<T>(unit < 0 ? -1e4 : 1e4);
    case 1: return static_cast<T>(200 * unit);
    case 2: return 0;
    default: return static_cast<T>(8 * unit);
  }
}

// Coordinates on a grid of eighths have equal edges, and sides of length 0.
double random_coordinate(Bytes& bytes, bool grid) { return grid ? std::floor(8 * bytes.unit()) / 8 : bytes.unit(); }

// Matches about half of the targets, each query to one at most.
template <typename T>
void match_distinct(Bytes& bytes, Case<T>& c) {
  for (int64_t l = 0; l < c.layers; ++l) {
    std::vector<bool> taken(c.images * c.queries);
    for (int64_t g = 0; g < c.groups; ++g) {
      for (int64_t b = 0; b < c.images; ++b) {
        for (int64_t t = c.offsets[b]; t < c.offsets[b + 1]; ++t) {
          const int64_t query = c.queries ? bytes.below(c.queries) : 0, k = b * c.queries + query;
          const bool free = c.queries && !taken[k];
          c.query[(l * c.groups + g) * c.count + t] = free ? query : -1;
          if (free) taken[k] = true;
        }
      }
    }
  }
}

template <typename T>
Case<T> make_case(Bytes& bytes) {
  const int64_t layers = bytes.below(3), images = bytes.below(4);
  const int64_t groups = 1 + bytes.below(2), queries = groups * bytes.below(9), classes = 1 + bytes.below(40);
  const bool no_targets = bytes.below(8) == 0;
  std::vector<int64_t> sizes(images);
  for (int64_t& size : sizes) size = no_targets || classes == 1 ? 0 : bytes.below(12);  // may exceed the queries
  int64_t count = 0;
  for (const int64_t size : sizes) count += size;
  Case<T> c = {layers,
               images,
               queries,
               classes,
               groups,
               count,
               Exact<T>(layers * images * queries * classes),
               Exact<T>(layers * images * queries * 4),
               Exact<int64_t>(count),
               Exact<int64_t>(layers * groups * count),
               Exact<float>(4 * count),
               Exact<int32_t>(images + 1),
               {},
               {},
               {},
               {},
               {},
               {}};

  const int64_t spread = bytes.below(6);
  const bool grid = bytes.below(2);
  for (T& value : c.logit_values) value = random_logit<T>(bytes, spread);
  for (T& value : c.box_values) value = static_cast<T>(random_coordinate(bytes, grid));
  for (float& value : c.target_boxes) value = static_cast<float>(random_coordinate(bytes, grid));
  for (int64_t& label : c.labels) label = bytes.below(classes - 1);
  for (int64_t b = 0; b < images; ++b) c.offsets[b + 1] = static_cast<int32_t>(c.offsets[b] + sizes[b]);
  match_distinct(bytes, c);

  const bool layers_inside = bytes.below(2);
  c.logits = layout(c.logit_values.data(), layers, images, queries, classes, layers_inside);
  c.boxes = layout(c.box_values.data(), layers, images, queries, 4, layers_inside);
  c.targets = {c.labels.data(), c.target_boxes.data(), c.offsets.data(), count, images};
  c.matches = {c.query.data(), groups};
  const double gamma = bytes.below(2) ? 2 : 1.5, giou_eps = bytes.below(2) ? 1e-7 : 0, scale = bytes.below(2) ? 1 : 640;
  c.match_options = {bytes.below(2) != 0,
                     bytes.below(2) != 0,
                     2,
                     5,
                     2,
                     0.25,
                     gamma,
                     bytes.below(2) ? 1e-8 : 0,
                     giou_eps,
                     scale,
                     static_cast<IouKind>(bytes.below(3))};
  c.loss_options = {static_cast<ClassLoss>(bytes.below(4)), 0.1, 0.25, gamma, giou_eps, scale};
  return c;
}

template <typename T>
struct Results {
  std::vector<T> cost, grad_logits, grad_boxes;
  std::vector<double> losses;
};

template <typename T>
Results<T> run(Case<T>& c) {
  const int64_t size = c.layers * c.images * c.queries;
  Exact<T> cost(c.layers * c.count * c.queries), grad_logits(size * c.classes), grad_boxes(size * 4);
  Exact<double> losses(3 * c.layers), upstream(3 * c.layers);
  for (int64_t k = 0; k < upstream.size(); ++k) upstream[k] = 1.0 + static_cast<double>(k);
  match_cost(c.logits, c.boxes, c.targets, c.match_options, cost.data());
  set_loss(c.logits, c.boxes, c.targets, c.matches, c.loss_options, losses.data());
  set_loss_backward(c.logits, c.boxes, c.targets, c.matches, c.loss_options, upstream.data(), grad_logits.data(),
                    grad_boxes.data());
  return {{cost.begin(), cost.end()},
          {grad_logits.begin(), grad_logits.end()},
          {grad_boxes.begin(), grad_boxes.end()},
          {losses.begin(), losses.end()}};
}

// Relative to the greatest value, because the terms of a sum may cancel.
template <typename T>
void require_close(const std::vector<T>& values, const std::vector<T>& expected, double tolerance,
                   const char* property) {
  double scale = 1;
  for (const T value : expected) {
    require(std::isfinite(value), "finite results of finite inputs");
    scale = std::max(scale, std::abs(static_cast<double>(value)));
  }
  for (size_t k = 0; k < values.size(); ++k) {
    require(std::abs(static_cast<double>(values[k]) - static_cast<double>(expected[k])) <= tolerance * scale, property);
  }
}

template <typename T>
bool equal(const Results<T>& a, const Results<T>& b) {
  return a.cost == b.cost && a.losses == b.losses && a.grad_logits == b.grad_logits && a.grad_boxes == b.grad_boxes;
}

template <typename T>
void check_case(Bytes& bytes) {
  Case<T> c = make_case<T>(bytes);
  constexpr double kTolerance = sizeof(T) == 4 ? 1e-4 : 1e-9;
  use_instruction_set("portable");
  const Results<T> expected = run(c);
  for (const std::string& name : instruction_sets()) {
    use_instruction_set(name);
    const Results<T> results = run(c);
    require_close(results.cost, expected.cost, kTolerance, "the same cost with every instruction set");
    require_close(results.losses, expected.losses, kTolerance, "the same losses with every instruction set");
    require_close(results.grad_logits, expected.grad_logits, kTolerance, "the same gradients of the logits");
    require_close(results.grad_boxes, expected.grad_boxes, kTolerance, "the same gradients of the boxes");
    if (bytes.below(8)) continue;
    Results<T> other;  // a call from another thread at the same time
    std::thread thread([&] { other = run(c); });
    const Results<T> again = run(c);
    thread.join();
    require(equal(again, results) && equal(other, results), "the same results from two threads");
  }
}

template <typename T>
bool is_refused(Case<T>& c) {
  try {
    run(c);
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

// An index out of range is refused, whichever it is, and a query of two targets.
template <typename T>
void check_refusal(Bytes& bytes) {
  constexpr int64_t kExtremes[] = {std::numeric_limits<int64_t>::min(), -2, std::numeric_limits<int32_t>::max(),
                                   std::numeric_limits<int64_t>::max()};
  Case<T> c = make_case<T>(bytes);
  const int64_t extreme = kExtremes[bytes.below(4)];
  switch (bytes.below(4)) {
    case 0: {
      if (c.count == 0) return;
      const bool focal = c.match_options.focal && c.loss_options.class_loss != ClassLoss::kSoftmax;
      c.labels[bytes.below(c.count)] = bytes.below(2) ? extreme : focal ? c.classes : c.classes - 1;
      break;
    }
    case 1:
      if (c.query.size() == 0) return;
      c.query[bytes.below(c.query.size())] = bytes.below(2) ? extreme : c.queries;
      break;
    case 2:
      if (c.query.size() < 2 || c.images == 0 || c.offsets[1] < 2 || c.queries == 0) return;
      c.query[0] = c.query[1] = bytes.below(c.queries);
      break;
    default: {
      const int64_t image = bytes.below(c.images + 1);
      c.offsets[image] = image == 0 ? 1 : bytes.below(2) ? std::numeric_limits<int32_t>::max() : -1;
    }
  }
  require(is_refused(c), "an index out of range is refused");
}

}  // namespace

void check_refusals(Bytes& bytes) { bytes.next() % 2 ? check_refusal<float>(bytes) : check_refusal<double>(bytes); }

void check_losses(Bytes& bytes) { bytes.next() % 2 ? check_case<float>(bytes) : check_case<double>(bytes); }

}  // namespace detr_fast

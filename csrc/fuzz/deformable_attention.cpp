#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/instruction_set.h"
#include "fused_deformable_attention.h"
#include "fuzz/cases.h"
#include "multi_scale_deformable_attention.h"

namespace detr_fast {
namespace {

struct Sizes {
  int64_t images, values, heads, width, queries, points, point_levels, coordinates;
  std::vector<int64_t> shapes, points_per_level;
  bool discrete;

  DeformableAttention attention(int num_threads) const {
    return {images, values, heads, width, queries, points, shapes, points_per_level, discrete, num_threads};
  }
};

Sizes random_sizes(Bytes& bytes) {
  const bool large = bytes.below(16) == 0;  // enough work for several threads
  Sizes s = {};
  s.images = large ? 4 : bytes.below(3), s.heads = large ? 16 : bytes.below(4);
  s.queries = large ? 24 : bytes.below(6), s.width = bytes.below(large ? 20 : 70);
  const int64_t levels = 1 + bytes.below(3);
  for (int64_t k = 0; k < levels; ++k) {
    const int64_t height = bytes.below(7), width = bytes.below(7), points = bytes.below(large ? 12 : 4);
    s.shapes.push_back(height), s.shapes.push_back(width), s.points_per_level.push_back(points);
    s.values += height * width, s.points += points;
  }
  s.point_levels = bytes.below(2) ? 1 : levels, s.coordinates = bytes.below(2) ? 2 : 4;
  s.discrete = bytes.below(4) == 0;
  return s;
}

template <typename T>
T random_number(Bytes& bytes, double low, double high) {
  switch (bytes.below(200)) {
    case 0: return std::numeric_limits<T>::quiet_NaN();
    case 1: return std::numeric_limits<T>::infinity();
    case 2: return -std::numeric_limits<T>::infinity();
    case 3: return static_cast<T>(1e30);
    default: return static_cast<T>(low + (high - low) * bytes.unit());
  }
}

template <typename T>
void fill(Bytes& bytes, Exact<T>* array, double low, double high) {
  for (T& value : *array) value = random_number<T>(bytes, low, high);
}

template <typename T>
struct Inputs {
  Exact<T> value, locations, weights, points, offsets, logits, grad_output;

  explicit Inputs(const Sizes& s)
      : value(s.images * s.values * s.heads * s.width),
        locations(s.images * s.queries * s.heads * s.points * 2),
        weights(s.images * s.queries * s.heads * s.points),
        points(s.images * s.queries * s.point_levels * s.coordinates),
        offsets(locations.size()),
        logits(weights.size()),
        grad_output(s.images * s.queries * s.heads * s.width) {}
};

template <typename T>
std::vector<Exact<T>> run(const Sizes& s, Inputs<T>& in, int num_threads) {
  const DeformableAttention attention = s.attention(num_threads);
  std::vector<Exact<T>> out;
  for (const int64_t size :
       {in.grad_output.size(), in.value.size(), in.locations.size(), in.weights.size(), in.grad_output.size(),
        in.value.size(), in.points.size(), in.offsets.size(), in.logits.size()}) {
    out.emplace_back(size);
  }
  multi_scale_deformable_attention(attention, in.value.data(), in.locations.data(), in.weights.data(), out[0].data());
  multi_scale_deformable_attention_backward(attention, in.value.data(), in.locations.data(), in.weights.data(),
                                            in.grad_output.data(), out[1].data(), out[2].data(), out[3].data());
  const AttentionPoints<T> points = {in.points.data(),  s.point_levels,   s.coordinates,
                                     in.offsets.data(), in.logits.data(), 0.5};
  fused_deformable_attention(attention, in.value.data(), points, out[4].data());
  fused_deformable_attention_backward(attention, in.value.data(), points, in.grad_output.data(), out[5].data(),
                                      {out[6].data(), out[7].data(), out[8].data()});
  return out;
}

// NaN may have any bits.
template <typename T>
bool equal(std::vector<Exact<T>>& a, std::vector<Exact<T>>& b) {
  for (size_t k = 0; k < a.size(); ++k) {
    for (int64_t i = 0; i < a[k].size(); ++i) {
      const T x = a[k][i], y = b[k][i];
      if (std::isnan(x) && std::isnan(y)) continue;
      if (std::memcmp(&x, &y, sizeof x) != 0) return false;
    }
  }
  return true;
}

template <typename T>
void check(Bytes& bytes) {
  const Sizes s = random_sizes(bytes);
  Inputs<T> in(s);
  fill(bytes, &in.value, -1, 1), fill(bytes, &in.locations, -0.3, 1.3), fill(bytes, &in.weights, 0, 1);
  fill(bytes, &in.points, 0, 1), fill(bytes, &in.offsets, -3, 3), fill(bytes, &in.logits, -4, 4);
  fill(bytes, &in.grad_output, -1, 1);
  use_instruction_set("portable");
  std::vector<Exact<T>> expected = run(s, in, 1);
  for (const std::string& name : instruction_sets()) {
    use_instruction_set(name);
    std::vector<Exact<T>> single = run(s, in, 1), several = run(s, in, 4);
    require(equal(single, several), "the same bits with any number of threads");
    require(equal(single, expected), "the same bits with every instruction set");
  }
}

// Sizes of which one does not fit the others are refused.
void check_sizes(Bytes& bytes) {
  constexpr int64_t kExtremes[] = {std::numeric_limits<int64_t>::min(), -1, int64_t{1} << 32,
                                   std::numeric_limits<int64_t>::max()};
  Sizes s = random_sizes(bytes);
  const int64_t extreme = kExtremes[bytes.below(4)];
  switch (bytes.below(4)) {
    case 0: s.values += 1 + bytes.below(3); break;
    case 1: s.points += bytes.below(2) ? 1 : -1; break;
    case 2: s.shapes[bytes.below(static_cast<int64_t>(s.shapes.size()))] = extreme; break;
    default: s.points_per_level[bytes.below(static_cast<int64_t>(s.points_per_level.size()))] = extreme;
  }
  bool refused = false;
  try {
    s.attention(1);
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  require(refused, "sizes that do not fit are refused");
}

}  // namespace

void check_deformable_attention(Bytes& bytes) {
  switch (bytes.next() % 3) {
    case 0: check<float>(bytes); break;
    case 1: check<double>(bytes); break;
    default: check_sizes(bytes);
  }
}

}  // namespace detr_fast

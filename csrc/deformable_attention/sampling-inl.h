// Samples the values around the points of each query and head, and distributes gradients to them.
//
// A Source gives the locations and the weights of a query's points and takes their gradients. It has
//   void read(int64_t image, int64_t query, int64_t head, Samples<T>* samples): writes x, y and weight;
//   void write(int64_t image, int64_t query, int64_t head, Samples<T>* samples): takes grad_x, grad_y, grad_weight.
// One image and one head are always computed by one thread and query by query, so that the results do not depend on
// the number of threads.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <type_traits>
#include <vector>

#include "common/run_on_threads.h"
#include "deformable_attention/attention.h"

#if defined(DETR_FAST_DEFORMABLE_ATTENTION_SAMPLING_INL_H) == defined(DETR_FAST_TOGGLE)
#ifdef DETR_FAST_DEFORMABLE_ATTENTION_SAMPLING_INL_H
#undef DETR_FAST_DEFORMABLE_ATTENTION_SAMPLING_INL_H
#else
#define DETR_FAST_DEFORMABLE_ATTENTION_SAMPLING_INL_H
#endif

#include "common/lanes-inl.h"
#include "common/target-inl.h"

DETR_FAST_BEFORE_NAMESPACE();
namespace detr_fast::DETR_FAST_NAMESPACE {

// The points of a query are padded to a multiple of this, and not to 0; the padding lies outside of all levels.
constexpr int64_t kPointLanes = 16;

// Calls function(n) for n below a multiple of kPointLanes; the calls must be independent of each other.
template <typename Function>
DETR_FAST_INLINE void for_each_lane(int64_t padded, const Function& function) {
  for (int64_t begin = 0; begin < padded; begin += kPointLanes) {
    DETR_FAST_SIMD
    for (int64_t lane = 0; lane < kPointLanes; ++lane) function(begin + lane);
  }
}

// The level of each point.
template <typename T>
struct PointLevels {
  std::vector<T> width, height, count;        // count: points of the level
  std::vector<int32_t> columns, rows, first;  // width, height and index of the first value
  std::vector<int32_t> level;
  int64_t padded;

  explicit PointLevels(const DeformableAttention& attention)
      : padded((std::max(attention.points, int64_t{1}) + kPointLanes - 1) / kPointLanes * kPointLanes) {
    for (auto* field : {&width, &height, &count}) field->assign(padded, 0);
    for (auto* field : {&columns, &rows, &first, &level}) field->assign(padded, 0);
    int64_t n = 0;
    for (size_t index = 0; index < attention.levels.size(); ++index) {
      const Level& of = attention.levels[index];
      for (int64_t k = 0; k < of.points; ++k, ++n) {
        width[n] = static_cast<T>(of.width), height[n] = static_cast<T>(of.height);
        count[n] = static_cast<T>(of.points);
        columns[n] = static_cast<int32_t>(of.width), rows[n] = static_cast<int32_t>(of.height);
        first[n] = static_cast<int32_t>(of.first), level[n] = static_cast<int32_t>(index);
      }
    }
  }
};

// The points of one query and head. Corner k of a point is its left (k < 2) or right, upper (k even) or lower cell.
template <typename T>
struct Samples {
  T *x, *y, *weight;                 // in cells of the level, 0 at its edge
  T *x_fraction, *y_fraction;        // from the upper left corner
  T* factor;                         // [4,N], by which the corners' values are added up
  T* dot;                            // [N,4], products of the corners' values and the output's gradient
  T *grad_x, *grad_y, *grad_weight;  // per cell, of the weight
  T* scratch[4];                     // for the source
  T *pairs, *numbers;                // copies of two numbers and of one number for each point, padded with zeros
  int32_t *index, *inside;           // of the upper left corner; a bit for each corner that exists
  int64_t points, padded;

  Samples(int64_t points, int64_t padded)
      : points(points), padded(padded), numbers_(23 * padded), integers_(2 * padded) {
    T* next = numbers_.data();
    for (T** field : {&x, &y, &weight, &x_fraction, &y_fraction, &grad_x, &grad_y, &grad_weight}) {
      *field = next, next += padded;
    }
    for (T*& field : scratch) field = next, next += padded;
    factor = next, dot = next + 4 * padded, pairs = next + 8 * padded, numbers = next + 10 * padded;
    index = integers_.data(), inside = index + padded;
  }
  // The same numbers, `count` for each point, in memory that may be read up to the padding.
  const T* padded_input(const T* from, int64_t count, T* copy) const {
    return points == padded ? from : (std::copy_n(from, count * points, copy), copy);
  }
  // Where numbers are written, up to the padding, of which finish_output() then copies those of the points.
  T* padded_output(T* to, T* copy) const { return points == padded ? to : copy; }
  void finish_output(const T* written, int64_t count, T* to) const {
    if (points != padded) std::copy_n(written, count * points, to);
  }

  Samples(const Samples&) = delete;
  Samples& operator=(const Samples&) = delete;

 private:
  std::vector<T> numbers_;
  std::vector<int32_t> integers_;
};

template <typename T>
DETR_FAST_INLINE int32_t floor_of(T x) {
  const auto truncated = static_cast<int32_t>(x);
  return truncated - (x < static_cast<T>(truncated));
}

// The four cells around each point, and their factors.
template <typename T>
void find_corners(const PointLevels<T>& levels, Samples<T>* samples) {
  const T *x_of = samples->x, *y_of = samples->y, *weight = samples->weight;
  const T *width = levels.width.data(), *height = levels.height.data();
  const int32_t *columns = levels.columns.data(), *rows = levels.rows.data(), *first = levels.first.data();
  T *x_fraction = samples->x_fraction, *y_fraction = samples->y_fraction, *factor = samples->factor;
  int32_t *index = samples->index, *inside = samples->inside;
  const int64_t padded = samples->padded;
  for_each_lane(padded, [=](int64_t n) DETR_FAST_INLINE_LAMBDA {
    T x = x_of[n] - T(0.5), y = y_of[n] - T(0.5);
    const bool near = (x >= -1) & (x < width[n]) & (y >= -1) & (y < height[n]);  // not for NaN
    x = near ? x : 0, y = near ? y : 0;
    const int32_t left = floor_of(x), top = floor_of(y);
    const T right_part = x - static_cast<T>(left), lower_part = y - static_cast<T>(top);
    const T left_part = 1 - right_part, upper_part = 1 - lower_part;
    x_fraction[n] = right_part, y_fraction[n] = lower_part;
    factor[n] = weight[n] * (left_part * upper_part);
    factor[padded + n] = weight[n] * (left_part * lower_part);
    factor[2 * padded + n] = weight[n] * (right_part * upper_part);
    factor[3 * padded + n] = weight[n] * (right_part * lower_part);
    index[n] = first[n] + top * columns[n] + left;
    const int32_t has_left = left >= 0, has_right = left + 1 < columns[n];
    const int32_t has_top = top >= 0, has_bottom = top + 1 < rows[n];
    const int32_t corners = (has_left & has_top) | (has_left & has_bottom) << 1 | (has_right & has_top) << 2 |
                            (has_right & has_bottom) << 3;
    inside[n] = near ? corners : 0;
  });
}

// The one cell of each point that discrete sampling takes: as if the point lay in its center.
template <typename T>
void find_cells(const PointLevels<T>& levels, Samples<T>* samples) {
  for (int64_t n = 0; n < samples->padded; ++n) {
    const T x = samples->x[n] + T(0.5), y = samples->y[n] + T(0.5), last_x = levels.width[n] - 1,
            last_y = levels.height[n] - 1;
    const bool exists = x == x && y == y && last_x >= 0 && last_y >= 0;
    const auto column = static_cast<int32_t>(exists ? (x > 0 ? (x < last_x ? x : last_x) : 0) : 0);
    const auto row = static_cast<int32_t>(exists ? (y > 0 ? (y < last_y ? y : last_y) : 0) : 0);
    samples->x_fraction[n] = samples->y_fraction[n] = 0;
    samples->factor[n] = samples->weight[n];
    samples->index[n] = levels.first[n] + row * levels.columns[n] + column;
    samples->inside[n] = exists;
  }
}

// Where the values of one image and head are: rows of D numbers, `stride` numbers apart.
template <typename T>
struct Rows {
  T* data;
  std::ptrdiff_t stride;
};

constexpr int32_t kAllCorners = 15;

// Calls function(corner, offset of its value) for the corners of point n that exist.
template <typename T, typename Function>
DETR_FAST_INLINE void for_each_corner(const Samples<T>& samples, const PointLevels<T>& levels, int64_t n,
                                      std::ptrdiff_t stride, const Function& function) {
  const int32_t inside = samples.inside[n];
  const std::ptrdiff_t upper = samples.index[n] * stride, lower = upper + levels.columns[n] * stride;
  if (inside == kAllCorners) {
    function(0, upper), function(1, lower), function(2, upper + stride), function(3, lower + stride);
    return;
  }
  if (inside & 1) function(0, upper);
  if (inside & 2) function(1, lower);
  if (inside & 4) function(2, upper + stride);
  if (inside & 8) function(3, lower + stride);
}

// Adds up kCount columns of the values at a query's points.
template <typename T, int kCount>
void gather(const Samples<T>& samples, const PointLevels<T>& levels, const Rows<const T>& value, T* output) {
  const T *data = value.data, *factor = samples.factor;
  const int64_t padded = samples.padded;
  auto sum = Lanes<T, kCount>::zero();
  for (int64_t n = 0; n < samples.points; ++n) {
    for_each_corner(samples, levels, n, value.stride, [&](int corner, std::ptrdiff_t offset) DETR_FAST_INLINE_LAMBDA {
      sum = sum + Lanes<T, kCount>::load(data + offset) * factor[corner * padded + n];
    });
  }
  sum.store(output);
}

// Adds a query's gradient to kCount columns of the values at its points, and the products of both to `dot`.
template <typename T, int kCount>
void scatter(const Samples<T>& samples, const PointLevels<T>& levels, const Rows<const T>& value,
             const Rows<T>& grad_value, const T* grad_output) {
  using Vector = Lanes<T, kCount>;
  const T *data = value.data, *factor = samples.factor;
  T *grad_data = grad_value.data, *dot = samples.dot;
  const int64_t padded = samples.padded;
  const auto grad = Vector::load(grad_output);
  for (int64_t n = 0; n < samples.points; ++n) {
    if (samples.inside[n] == 0) continue;
    const auto none = fold(Vector::zero());
    decltype(fold(grad)) product[4] = {none, none, none, none};
    for_each_corner(samples, levels, n, value.stride, [&](int corner, std::ptrdiff_t offset) DETR_FAST_INLINE_LAMBDA {
      product[corner] = fold(grad * Vector::load(data + offset));
      (Vector::load(grad_data + offset) + grad * factor[corner * padded + n]).store(grad_data + offset);
    });
    (Lanes<T, 4>::load(dot + 4 * n) + sum_four(product[0], product[1], product[2], product[3])).store(dot + 4 * n);
  }
}

// Calls the function for pieces of a row of `width` numbers: function(std::integral_constant<int, size>, begin).
template <typename Function>
DETR_FAST_INLINE void for_each_piece(int64_t width, const Function& function) {
  int64_t begin = 0;
  for (; begin + 32 <= width; begin += 32) function(std::integral_constant<int, 32>(), begin);
  if (begin + 16 <= width) function(std::integral_constant<int, 16>(), begin), begin += 16;
  if (begin + 8 <= width) function(std::integral_constant<int, 8>(), begin), begin += 8;
  for (; begin < width; ++begin) function(std::integral_constant<int, 1>(), begin);
}

// From products of values and gradient to the gradients of locations, per cell, and of weights.
template <typename T>
void differentiate(const DeformableAttention& attention, Samples<T>* samples) {
  const T *x_fraction = samples->x_fraction, *y_fraction = samples->y_fraction, *weight = samples->weight;
  const T* dot = samples->dot;
  const int32_t* inside = samples->inside;
  const bool is_constant = attention.discrete;
  T *grad_x = samples->grad_x, *grad_y = samples->grad_y, *grad_weight = samples->grad_weight;
  const int64_t padded = samples->padded;
  for_each_lane(padded, [=](int64_t n) DETR_FAST_INLINE_LAMBDA {
    const T right_part = x_fraction[n], lower_part = y_fraction[n];
    const T left_part = 1 - right_part, upper_part = 1 - lower_part;
    const T d0 = dot[4 * n], d1 = dot[4 * n + 1], d2 = dot[4 * n + 2], d3 = dot[4 * n + 3];
    const T along_x = weight[n] * (upper_part * (d2 - d0) + lower_part * (d3 - d1));
    const T along_y = weight[n] * (left_part * (d1 - d0) + right_part * (d3 - d2));
    grad_weight[n] = left_part * (upper_part * d0 + lower_part * d1) + right_part * (upper_part * d2 + lower_part * d3);
    const bool moves = !is_constant & (inside[n] != 0);
    grad_x[n] = moves ? along_x : 0, grad_y[n] = moves ? along_y : 0;
  });
}

// Whether the values of a head are copied to rows without gaps first, which pays where each is read several times.
inline bool packs_rows(const DeformableAttention& attention) {
  constexpr int64_t kPointsPerValue = 2;
  return attention.heads > 1 && attention.queries * attention.points > kPointsPerValue * attention.values;
}

template <typename T>
void copy_rows(const Rows<const T>& from, const Rows<T>& to, int64_t rows, int64_t width) {
  for (int64_t k = 0; k < rows; ++k) std::copy_n(from.data + k * from.stride, width, to.data + k * to.stride);
}

// Numbers that begin at a cache line, so that no vector of them lies in two.
template <typename T>
class AlignedArray {
 public:
  T* resized(int64_t count) {
    constexpr std::size_t kLine = 64;
    memory_.resize(count + kLine / sizeof(T));
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.data());
    return memory_.data() + ((address + kLine - 1) / kLine * kLine - address) / sizeof(T);
  }

 private:
  std::vector<T> memory_;
};

// What a thread needs.
template <typename T>
struct Workspace {
  PointLevels<T> levels;
  Samples<T> samples;
  AlignedArray<T> value, grad_value;  // of one image and head, where rows are packed

  explicit Workspace(const DeformableAttention& attention)
      : levels(attention), samples(attention.points, levels.padded) {}

  // Reads the points of a query and head, and finds their cells.
  template <typename Source>
  void read(const DeformableAttention& attention, const Source& source, int64_t image, int64_t query, int64_t head) {
    source.read(image, query, head, levels, &samples);
    attention.discrete ? find_cells(levels, &samples) : find_corners(levels, &samples);
  }
};

// Calls task(image, head, workspace) for all images and heads, from as many threads as the work is worth.
template <typename T, typename Task>
void for_each_head(const DeformableAttention& attention, int64_t passes, const Task& task) {
  constexpr double kNanosecondsPerPoint = 5, kNanosecondsPerThread = 6e4;
  const int64_t tasks = attention.images * attention.heads;
  const double work = kNanosecondsPerPoint * static_cast<double>(passes * tasks) *
                      static_cast<double>(attention.queries * attention.points + attention.values);
  const auto worth = static_cast<int64_t>(std::min(work / kNanosecondsPerThread, 1e6));
  std::atomic<int64_t> next{0};
  run_on_threads(static_cast<int>(std::min({int64_t{attention.num_threads}, tasks, worth + 1})), [&] {
    Workspace<T> workspace(attention);
    for (int64_t k; (k = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      task(k / attention.heads, k % attention.heads, &workspace);
    }
  });
}

// The output of one image and head.
template <typename T, typename Source>
void attend_head(const DeformableAttention& attention, const T* value, const Source& source, int64_t image,
                 int64_t head, Workspace<T>* workspace, T* output) {
  const int64_t row = attention.heads * attention.width, width = attention.width;
  Rows<const T> rows = {value + image * attention.values * row + head * width, row};
  if (packs_rows(attention)) {
    T* packed = workspace->value.resized(attention.values * width);
    copy_rows(rows, {packed, width}, attention.values, width);
    rows = {packed, width};
  }
  for (int64_t query = 0; query < attention.queries; ++query) {
    workspace->read(attention, source, image, query, head);
    T* to = output + (image * attention.queries + query) * row + head * width;
    for_each_piece(width, [&](auto size, int64_t begin) {
      gather<T, size>(workspace->samples, workspace->levels, {rows.data + begin, rows.stride}, to + begin);
    });
  }
}

// The gradient of the values of all images. It is set to zero image by image, so that it is in the cache when it is
// added to.
template <typename T>
class GradValue {
 public:
  GradValue(const DeformableAttention& attention, T* data)
      : data_(data), image_size_(attention.values * attention.heads * attention.width), is_zero_(attention.images) {}

  T* zeros(int64_t image) {
    T* begin = data_ + image * image_size_;
    std::call_once(is_zero_[image], [&] { std::fill_n(begin, image_size_, T(0)); });
    return begin;
  }
  T* uninitialized(int64_t image) { return data_ + image * image_size_; }

 private:
  T* data_;
  int64_t image_size_;
  std::vector<std::once_flag> is_zero_;
};

// The gradients of one image and head.
template <typename T, typename Source>
void differentiate_head(const DeformableAttention& attention, const T* value, const Source& source,
                        const T* grad_output, int64_t image, int64_t head, Workspace<T>* workspace,
                        GradValue<T>* grad_value) {
  const int64_t row = attention.heads * attention.width, width = attention.width;
  Rows<const T> rows = {value + image * attention.values * row + head * width, row};
  Rows<T> grad_rows = {nullptr, width};
  const bool packs = packs_rows(attention);
  if (packs) {
    T* packed = workspace->value.resized(attention.values * width);
    copy_rows(rows, {packed, width}, attention.values, width);
    rows = {packed, width};
    grad_rows.data = workspace->grad_value.resized(attention.values * width);
    std::fill_n(grad_rows.data, attention.values * width, T(0));
  } else {
    grad_rows = {grad_value->zeros(image) + head * width, row};
  }
  Samples<T>& samples = workspace->samples;
  for (int64_t query = 0; query < attention.queries; ++query) {
    workspace->read(attention, source, image, query, head);
    std::fill_n(samples.dot, 4 * samples.padded, T(0));
    const T* grad = grad_output + (image * attention.queries + query) * row + head * width;
    for_each_piece(width, [&](auto size, int64_t column) {
      scatter<T, size>(samples, workspace->levels, {rows.data + column, rows.stride},
                       {grad_rows.data + column, grad_rows.stride}, grad + column);
    });
    differentiate(attention, &samples);
    source.write(image, query, head, workspace->levels, &samples);
  }
  if (packs) {
    T* to = grad_value->uninitialized(image) + head * width;
    copy_rows({grad_rows.data, width}, Rows<T>{to, row}, attention.values, width);
  }
}

}  // namespace detr_fast::DETR_FAST_NAMESPACE
DETR_FAST_AFTER_NAMESPACE();

#endif

#include "deformable_attention/attention.h"

#include <cstddef>
#include <limits>
#include <stdexcept>
#include <string>

namespace detr_fast {
namespace {

constexpr int64_t kMaxValues = std::numeric_limits<int32_t>::max();  // which cells are counted by

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument(message); }

}  // namespace

DeformableAttention::DeformableAttention(int64_t images, int64_t values, int64_t heads, int64_t width, int64_t queries,
                                         int64_t points, const std::vector<int64_t>& shapes,
                                         const std::vector<int64_t>& points_per_level, bool discrete, int num_threads)
    : images(images),
      values(values),
      heads(heads),
      width(width),
      queries(queries),
      points(points),
      discrete(discrete),
      num_threads(num_threads) {
  if (shapes.size() != 2 * points_per_level.size()) {
    fail("expected a height and a width for each of " + std::to_string(points_per_level.size()) + " levels, got " +
         std::to_string(shapes.size()) + " numbers");
  }
  if (values > kMaxValues) fail("value must have at most 2^31 - 1 rows, got " + std::to_string(values));
  int64_t cells = 0, all_points = 0;
  for (size_t k = 0; k < points_per_level.size(); ++k) {
    const Level level = {shapes[2 * k], shapes[2 * k + 1], cells, points_per_level[k]};
    if (level.height < 0 || level.width < 0 || level.points < 0) fail("a level has a negative size");
    if (level.height > kMaxValues || level.width > kMaxValues) fail("a level has a side of more than 2^31 - 1 cells");
    // By division, because the product may overflow.
    if (level.width > 0 && level.height > (values - cells) / level.width) {
      fail("value has " + std::to_string(values) + " rows, but the levels have more cells");
    }
    if (level.points > points - all_points) fail("the levels have more than " + std::to_string(points) + " points");
    cells += level.height * level.width;
    all_points += level.points;
    levels.push_back(level);
  }
  if (cells != values) {
    fail("value has " + std::to_string(values) + " rows, but the levels have " + std::to_string(cells) + " cells");
  }
  if (all_points != points) {
    fail("a query has " + std::to_string(points) + " points, but the levels have " + std::to_string(all_points));
  }
}

}  // namespace detr_fast

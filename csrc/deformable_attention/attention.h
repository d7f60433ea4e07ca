// What the two deformable attention ops have in common: the sizes of a call, and what each point of a query needs.
#pragma once

#include <cstdint>
#include <vector>

namespace detr_fast {

struct Level {
  int64_t height, width;
  int64_t first;   // index of its first value
  int64_t points;  // of each query and head
};

// Value [B,S,H,D] and output [B,Q,H*D]; each query has N points for each head, level by level.
struct DeformableAttention {
  int64_t images, values, heads, width, queries, points;  // B, S, H, D, Q, N
  std::vector<Level> levels;
  bool discrete;    // takes one cell for each point, else four
  int num_threads;  // the most that are used

  // Takes the height and the width of each level in turn, and the number of points of each level. Throws
  // std::invalid_argument where the sizes do not fit together.
  DeformableAttention(int64_t images, int64_t values, int64_t heads, int64_t width, int64_t queries, int64_t points,
                      const std::vector<int64_t>& shapes, const std::vector<int64_t>& points_per_level, bool discrete,
                      int num_threads);
};

}  // namespace detr_fast

// Predictions and targets as the bindings pass them; shapes and names are those of detr_fast.ops.
#pragma once

#include <cstddef>
#include <cstdint>

namespace detr_fast {

// [L,B,Q,W]: the last axis is contiguous, the strides of the others count elements and may have any value.
template <typename T>
struct Predictions {
  const T* data;
  int64_t layers, images, queries, width;
  std::ptrdiff_t layer_stride, image_stride, query_stride;

  const T* row(int64_t layer, int64_t image, int64_t query) const {
    return data + layer * layer_stride + image * image_stride + query * query_stride;
  }
};

struct PackedTargets {
  const int64_t* labels;   // [T]
  const float* boxes;      // [T,4], cxcywh
  const int32_t* offsets;  // [B+1]
  int64_t count, images;   // T, B
};

}  // namespace detr_fast

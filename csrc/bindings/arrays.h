// NumPy arrays as the views of common/arrays.h.
#pragma once

#include <pybind11/numpy.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "common/arrays.h"

namespace py = pybind11;

namespace detr_fast {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

template <typename T>
std::ptrdiff_t stride_of(const py::array_t<T>& array, py::ssize_t axis) {
  return array.strides(axis) / static_cast<py::ssize_t>(sizeof(T));
}

inline std::string describe_shape(const py::array& array) {
  std::string text = "[";
  for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
    text += (axis ? ", " : "") + std::to_string(array.shape(axis));
  }
  return text + "]";
}

inline void require_shape(const py::array& array, std::initializer_list<py::ssize_t> shape, const std::string& what) {
  if (array.ndim() == static_cast<py::ssize_t>(shape.size()) && std::equal(shape.begin(), shape.end(), array.shape())) {
    return;
  }
  throw py::value_error(what + ", got " + describe_shape(array));
}

inline void require_aligned(const py::array& array, const char* name) {
  if (array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) return;
  throw py::value_error(std::string(name) + " must be aligned in memory");
}

template <typename T>
Predictions<T> predictions_of(const py::array_t<T>& array, const char* name) {
  require_aligned(array, name);
  // NumPy gives arrays without elements any strides.
  if (array.size() > 0 && array.shape(3) > 1 && stride_of(array, 3) != 1) {
    throw py::value_error(std::string("the last axis of ") + name + " must be contiguous");
  }
  return {array.data(),   array.shape(0),      array.shape(1),      array.shape(2),
          array.shape(3), stride_of(array, 0), stride_of(array, 1), stride_of(array, 2)};
}

// What match_cost and set_loss have in common: logits [L,B,Q,C], boxes [L,B,Q,4], and the targets of the B images. The
// values of labels and offsets are checked by the ops.
template <typename T>
struct Batch {
  Predictions<T> logits, boxes;
  PackedTargets targets;

  Batch(const py::array_t<T>& logits_array, const py::array_t<T>& boxes_array, const Array<int64_t>& labels,
        const Array<float>& target_boxes, const Array<int32_t>& offsets) {
    if (logits_array.ndim() != 4 || boxes_array.ndim() != 4 || boxes_array.shape(3) != 4 ||
        !std::equal(logits_array.shape(), logits_array.shape() + 3, boxes_array.shape())) {
      throw py::value_error("expected logits [L,B,Q,C] and boxes [L,B,Q,4], got " + describe_shape(logits_array) +
                            " and " + describe_shape(boxes_array));
    }
    if (labels.ndim() != 1) throw py::value_error("labels must be [T], got " + describe_shape(labels));
    const py::ssize_t count = labels.shape(0);
    require_shape(target_boxes, {count, 4},
                  std::to_string(count) + " labels need boxes of shape [" + std::to_string(count) + ", 4]");
    if (offsets.ndim() != 1 || offsets.shape(0) < 1) {
      throw py::value_error("offsets must be [B+1], got " + describe_shape(offsets));
    }
    require_aligned(labels, "labels");
    require_aligned(target_boxes, "target_boxes");
    require_aligned(offsets, "offsets");
    logits = predictions_of(logits_array, "logits");
    boxes = predictions_of(boxes_array, "boxes");
    targets = {labels.data(), target_boxes.data(), offsets.data(), count, offsets.shape(0) - 1};
  }
};

}  // namespace detr_fast

// NumPy arrays as the views of common/arrays.h.
#pragma once

#include <pybind11/numpy.h>

#include <cstddef>
#include <cstdint>

#include "common/arrays.h"

namespace py = pybind11;

namespace detr_fast {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

template <typename T>
std::ptrdiff_t stride_of(const py::array_t<T>& array, py::ssize_t axis) {
  return array.strides(axis) / static_cast<py::ssize_t>(sizeof(T));
}

template <typename T>
Predictions<T> predictions_of(const py::array_t<T>& array) {
  if (array.shape(3) > 1 && stride_of(array, 3) != 1) throw py::value_error("the last axis must be contiguous");
  return {array.data(),   array.shape(0),      array.shape(1),      array.shape(2),
          array.shape(3), stride_of(array, 0), stride_of(array, 1), stride_of(array, 2)};
}

inline PackedTargets targets_of(const Array<int64_t>& labels, const Array<float>& boxes,
                                const Array<int32_t>& offsets) {
  return {labels.data(), boxes.data(), offsets.data(), labels.shape(0)};
}

}  // namespace detr_fast

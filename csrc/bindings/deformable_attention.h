// What the bindings of the two deformable attention ops have in common.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "deformable_attention/attention.h"

namespace detr_fast {

// The sizes of a call with value [B,S,H,D] and a number for each of N points of the queries, [B,Q,H,N].
template <typename T>
DeformableAttention attention_of(const Array<T>& value, const Array<T>& weights, const char* weights_name,
                                 const std::vector<int64_t>& shapes, const std::vector<int64_t>& points_per_level,
                                 bool discrete, int num_threads) {
  if (value.ndim() != 4 || weights.ndim() != 4 || value.shape(0) != weights.shape(0) ||
      value.shape(2) != weights.shape(2)) {
    throw py::value_error(std::string("expected value [B,S,H,D] and ") + weights_name + " [B,Q,H,N], got " +
                          describe_shape(value) + " and " + describe_shape(weights));
  }
  require_aligned(value, "value");
  require_aligned(weights, weights_name);
  return {value.shape(0),   value.shape(1), value.shape(2),   value.shape(3), weights.shape(1),
          weights.shape(3), shapes,         points_per_level, discrete,       num_threads};
}

// Memory that a result is written to.
template <typename T>
T* result_of(Array<T>& array, std::initializer_list<py::ssize_t> shape, const char* name) {
  require_shape(array, shape, std::string(name) + " does not have the shape of the result");
  require_aligned(array, name);
  return array.mutable_data();
}

}  // namespace detr_fast

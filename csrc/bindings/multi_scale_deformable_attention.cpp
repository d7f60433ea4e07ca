#include "multi_scale_deformable_attention.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/deformable_attention.h"

namespace detr_fast {
namespace {

template <typename T>
DeformableAttention checked(const Array<T>& value, const Array<T>& locations, const Array<T>& weights,
                            const std::vector<int64_t>& shapes, const std::vector<int64_t>& points_per_level,
                            bool discrete, int num_threads) {
  DeformableAttention attention =
      attention_of(value, weights, "weights", shapes, points_per_level, discrete, num_threads);
  require_shape(locations, {attention.images, attention.queries, attention.heads, attention.points, 2},
                "locations must be [B,Q,H,N,2]");
  require_aligned(locations, "locations");
  return attention;
}

template <typename T>
void forward(const Array<T>& value, const Array<T>& locations, const Array<T>& weights,
             const std::vector<int64_t>& shapes, const std::vector<int64_t>& points_per_level, bool discrete,
             int num_threads, Array<T> output) {
  const DeformableAttention a = checked(value, locations, weights, shapes, points_per_level, discrete, num_threads);
  T* to = result_of(output, {a.images, a.queries, a.heads * a.width}, "output");
  py::gil_scoped_release unlocked;
  multi_scale_deformable_attention(a, value.data(), locations.data(), weights.data(), to);
}

template <typename T>
void backward(const Array<T>& value, const Array<T>& locations, const Array<T>& weights,
              const std::vector<int64_t>& shapes, const std::vector<int64_t>& points_per_level, bool discrete,
              int num_threads, const Array<T>& grad_output, Array<T> grad_value, Array<T> grad_locations,
              Array<T> grad_weights) {
  const DeformableAttention a = checked(value, locations, weights, shapes, points_per_level, discrete, num_threads);
  require_shape(grad_output, {a.images, a.queries, a.heads * a.width}, "grad_output must be [B,Q,H*D]");
  require_aligned(grad_output, "grad_output");
  T* to_value = result_of(grad_value, {a.images, a.values, a.heads, a.width}, "grad_value");
  T* to_locations = result_of(grad_locations, {a.images, a.queries, a.heads, a.points, 2}, "grad_locations");
  T* to_weights = result_of(grad_weights, {a.images, a.queries, a.heads, a.points}, "grad_weights");
  py::gil_scoped_release unlocked;
  multi_scale_deformable_attention_backward(a, value.data(), locations.data(), weights.data(), grad_output.data(),
                                            to_value, to_locations, to_weights);
}

template <typename T>
void define(py::module_& m) {
  m.def("multi_scale_deformable_attention", &forward<T>, py::arg("value").noconvert(), py::arg("locations").noconvert(),
        py::arg("weights").noconvert(), py::arg("shapes"), py::arg("points_per_level"), py::arg("discrete"),
        py::arg("num_threads"), py::arg("output").noconvert());
  m.def("multi_scale_deformable_attention_backward", &backward<T>, py::arg("value").noconvert(),
        py::arg("locations").noconvert(), py::arg("weights").noconvert(), py::arg("shapes"),
        py::arg("points_per_level"), py::arg("discrete"), py::arg("num_threads"), py::arg("grad_output").noconvert(),
        py::arg("grad_value").noconvert(), py::arg("grad_locations").noconvert(), py::arg("grad_weights").noconvert());
}

const Binding binding([](py::module_& m) {
  define<float>(m);
  define<double>(m);
});

}  // namespace
}  // namespace detr_fast

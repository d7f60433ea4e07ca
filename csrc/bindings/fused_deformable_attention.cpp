#include "fused_deformable_attention.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/deformable_attention.h"

namespace detr_fast {
namespace {

// The points of a query, checked against the other sizes.
template <typename T>
AttentionPoints<T> points_of(const DeformableAttention& a, const Array<T>& points, const Array<T>& offsets,
                             const Array<T>& logits, double offset_scale) {
  if (points.ndim() != 4 || points.shape(0) != a.images || points.shape(1) != a.queries) {
    throw py::value_error("points must be [B,Q,R,C], got " + describe_shape(points));
  }
  require_shape(offsets, {a.images, a.queries, a.heads, a.points, 2}, "offsets must be [B,Q,H,N,2]");
  require_aligned(points, "points");
  require_aligned(offsets, "offsets");
  return {points.data(), points.shape(2), points.shape(3), offsets.data(), logits.data(), offset_scale};
}

template <typename T>
void forward(const Array<T>& value, const Array<T>& points, const Array<T>& offsets, const Array<T>& logits,
             const std::vector<int64_t>& shapes, const std::vector<int64_t>& points_per_level, double offset_scale,
             bool discrete, int num_threads, Array<T> output) {
  const DeformableAttention a = attention_of(value, logits, "logits", shapes, points_per_level, discrete, num_threads);
  const AttentionPoints<T> from = points_of(a, points, offsets, logits, offset_scale);
  T* to = result_of(output, {a.images, a.queries, a.heads * a.width}, "output");
  py::gil_scoped_release unlocked;
  fused_deformable_attention(a, value.data(), from, to);
}

template <typename T>
void backward(const Array<T>& value, const Array<T>& points, const Array<T>& offsets, const Array<T>& logits,
              const std::vector<int64_t>& shapes, const std::vector<int64_t>& points_per_level, double offset_scale,
              bool discrete, int num_threads, const Array<T>& grad_output, Array<T> grad_value,
              std::optional<Array<T>> grad_points, Array<T> grad_offsets, Array<T> grad_logits) {
  const DeformableAttention a = attention_of(value, logits, "logits", shapes, points_per_level, discrete, num_threads);
  const AttentionPoints<T> from = points_of(a, points, offsets, logits, offset_scale);
  require_shape(grad_output, {a.images, a.queries, a.heads * a.width}, "grad_output must be [B,Q,H*D]");
  require_aligned(grad_output, "grad_output");
  T* to_value = result_of(grad_value, {a.images, a.values, a.heads, a.width}, "grad_value");
  AttentionPointsGradient<T> to = {};
  if (grad_points) {
    to.points = result_of(*grad_points, {a.images, a.queries, from.point_levels, from.coordinates}, "grad_points");
  }
  to.offsets = result_of(grad_offsets, {a.images, a.queries, a.heads, a.points, 2}, "grad_offsets");
  to.logits = result_of(grad_logits, {a.images, a.queries, a.heads, a.points}, "grad_logits");
  py::gil_scoped_release unlocked;
  fused_deformable_attention_backward(a, value.data(), from, grad_output.data(), to_value, to);
}

template <typename T>
void define(py::module_& m) {
  m.def("fused_deformable_attention", &forward<T>, py::arg("value").noconvert(), py::arg("points").noconvert(),
        py::arg("offsets").noconvert(), py::arg("logits").noconvert(), py::arg("shapes"), py::arg("points_per_level"),
        py::arg("offset_scale"), py::arg("discrete"), py::arg("num_threads"), py::arg("output").noconvert());
  m.def("fused_deformable_attention_backward", &backward<T>, py::arg("value").noconvert(),
        py::arg("points").noconvert(), py::arg("offsets").noconvert(), py::arg("logits").noconvert(), py::arg("shapes"),
        py::arg("points_per_level"), py::arg("offset_scale"), py::arg("discrete"), py::arg("num_threads"),
        py::arg("grad_output").noconvert(), py::arg("grad_value").noconvert(), py::arg("grad_points").noconvert(),
        py::arg("grad_offsets").noconvert(), py::arg("grad_logits").noconvert());
}

const Binding binding([](py::module_& m) {
  define<float>(m);
  define<double>(m);
});

}  // namespace
}  // namespace detr_fast

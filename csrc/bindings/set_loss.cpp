#include "set_loss.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "bindings/arrays.h"
#include "bindings/bindings.h"

namespace detr_fast {
namespace {

Matches matches_of(const Array<int64_t>& query, py::ssize_t layers, py::ssize_t targets) {
  if (query.ndim() != 3 || query.shape(0) != layers || query.shape(2) != targets) {
    throw py::value_error("query_index must be [L,G,T] with L=" + std::to_string(layers) +
                          " and T=" + std::to_string(targets) + ", got " + describe_shape(query));
  }
  require_aligned(query, "query_index");
  return {query.data(), query.shape(1)};
}

template <typename T>
Array<double> losses(const py::array_t<T>& logits, const py::array_t<T>& boxes, const Array<int64_t>& labels,
                     const Array<float>& target_boxes, const Array<int32_t>& offsets, const Array<int64_t>& query,
                     const LossOptions& options) {
  const Batch<T> batch(logits, boxes, labels, target_boxes, offsets);
  const Matches matches = matches_of(query, logits.shape(0), labels.shape(0));
  Array<double> result({py::ssize_t{3}, logits.shape(0)});
  double* data = result.mutable_data();
  py::gil_scoped_release unlocked;
  set_loss(batch.logits, batch.boxes, batch.targets, matches, options, data);
  return result;
}

template <typename T>
py::tuple gradients(const py::array_t<T>& logits, const py::array_t<T>& boxes, const Array<int64_t>& labels,
                    const Array<float>& target_boxes, const Array<int32_t>& offsets, const Array<int64_t>& query,
                    const LossOptions& options, const Array<double>& upstream) {
  const Batch<T> batch(logits, boxes, labels, target_boxes, offsets);
  const Matches matches = matches_of(query, logits.shape(0), labels.shape(0));
  require_shape(upstream, {3, logits.shape(0)}, "upstream must be [3,L] with L=" + std::to_string(logits.shape(0)));
  require_aligned(upstream, "upstream");
  Array<T> grad_logits({logits.shape(0), logits.shape(1), logits.shape(2), logits.shape(3)});
  Array<T> grad_boxes({boxes.shape(0), boxes.shape(1), boxes.shape(2), boxes.shape(3)});
  T *logits_data = grad_logits.mutable_data(), *boxes_data = grad_boxes.mutable_data();
  {
    py::gil_scoped_release unlocked;
    set_loss_backward(batch.logits, batch.boxes, batch.targets, matches, options, upstream.data(), logits_data,
                      boxes_data);
  }
  return py::make_tuple(grad_logits, grad_boxes);
}

template <typename T>
void define(py::module_& m) {
  m.def("set_loss", &losses<T>, py::arg("logits").noconvert(), py::arg("boxes").noconvert(),
        py::arg("labels").noconvert(), py::arg("target_boxes").noconvert(), py::arg("offsets").noconvert(),
        py::arg("query_index").noconvert(), py::arg("options"));
  m.def("set_loss_backward", &gradients<T>, py::arg("logits").noconvert(), py::arg("boxes").noconvert(),
        py::arg("labels").noconvert(), py::arg("target_boxes").noconvert(), py::arg("offsets").noconvert(),
        py::arg("query_index").noconvert(), py::arg("options"), py::arg("upstream").noconvert());
}

const Binding binding([](py::module_& m) {
  py::enum_<ClassLoss>(m, "ClassLoss")
      .value("softmax", ClassLoss::kSoftmax)
      .value("focal", ClassLoss::kFocal)
      .value("varifocal", ClassLoss::kVarifocal)
      .value("ia_bce", ClassLoss::kIaBce);
  py::class_<LossOptions>(m, "LossOptions")
      .def(py::init([](ClassLoss class_loss, double no_object, double focal_alpha, double focal_gamma, double giou_eps,
                       double box_scale) {
             return LossOptions{class_loss, no_object, focal_alpha, focal_gamma, giou_eps, box_scale};
           }),
           py::kw_only(), py::arg("class_loss"), py::arg("no_object"), py::arg("focal_alpha"), py::arg("focal_gamma"),
           py::arg("giou_eps"), py::arg("box_scale"));
  define<float>(m);
  define<double>(m);
});

}  // namespace
}  // namespace detr_fast

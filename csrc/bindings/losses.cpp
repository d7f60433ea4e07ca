// Python's view of match_cost and set_loss.
#include "bindings/losses.h"

#include <pybind11/numpy.h>

#include "match_cost.h"
#include "set_loss.h"

namespace py = pybind11;

namespace detr_fast {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

template <typename T>
Predictions<T> view(const py::array_t<T>& array) {
  const auto stride = [&](py::ssize_t axis) { return array.strides(axis) / static_cast<py::ssize_t>(sizeof(T)); };
  if (array.shape(3) > 1 && stride(3) != 1) throw py::value_error("the last axis must be contiguous");
  return {array.data(), array.shape(0), array.shape(1), array.shape(2), array.shape(3), stride(0), stride(1), stride(2)};
}

PackedTargets pack(const Array<int64_t>& labels, const Array<float>& boxes, const Array<int32_t>& offsets) {
  return {labels.data(), boxes.data(), offsets.data(), labels.shape(0)};
}

template <typename T>
Array<T> cost(const py::array_t<T>& logits, const py::array_t<T>& boxes, const Array<int64_t>& labels,
              const Array<float>& target_boxes, const Array<int32_t>& offsets, const MatchOptions& options) {
  const Predictions<T> logits_view = view(logits), boxes_view = view(boxes);
  const PackedTargets targets = pack(labels, target_boxes, offsets);
  Array<T> result({logits.shape(0), labels.shape(0), logits.shape(2)});
  T* data = result.mutable_data();
  py::gil_scoped_release unlocked;
  match_cost(logits_view, boxes_view, targets, options, data);
  return result;
}

Matches check(const Array<int64_t>& query, int64_t queries) {
  const int64_t* data = query.data();
  for (py::ssize_t i = 0; i < query.size(); ++i) {
    if (data[i] >= queries) throw py::value_error("query_index holds an index that is not below the number of queries");
  }
  return {data, query.shape(1)};
}

template <typename T>
Array<double> losses(const py::array_t<T>& logits, const py::array_t<T>& boxes, const Array<int64_t>& labels,
                     const Array<float>& target_boxes, const Array<int32_t>& offsets, const Array<int64_t>& query,
                     const LossOptions& options) {
  const Predictions<T> logits_view = view(logits), boxes_view = view(boxes);
  const PackedTargets targets = pack(labels, target_boxes, offsets);
  const Matches matches = check(query, logits.shape(2));
  Array<double> result({py::ssize_t{3}, logits.shape(0)});
  double* data = result.mutable_data();
  py::gil_scoped_release unlocked;
  set_loss(logits_view, boxes_view, targets, matches, options, data);
  return result;
}

template <typename T>
py::tuple gradients(const py::array_t<T>& logits, const py::array_t<T>& boxes, const Array<int64_t>& labels,
                    const Array<float>& target_boxes, const Array<int32_t>& offsets, const Array<int64_t>& query,
                    const LossOptions& options, const Array<double>& upstream) {
  const Predictions<T> logits_view = view(logits), boxes_view = view(boxes);
  const PackedTargets targets = pack(labels, target_boxes, offsets);
  const Matches matches = check(query, logits.shape(2));
  Array<T> grad_logits({logits.shape(0), logits.shape(1), logits.shape(2), logits.shape(3)});
  Array<T> grad_boxes({boxes.shape(0), boxes.shape(1), boxes.shape(2), boxes.shape(3)});
  T *logits_data = grad_logits.mutable_data(), *boxes_data = grad_boxes.mutable_data();
  {
    py::gil_scoped_release unlocked;
    set_loss_backward(logits_view, boxes_view, targets, matches, options, upstream.data(), logits_data, boxes_data);
  }
  return py::make_tuple(grad_logits, grad_boxes);
}

template <typename T>
void bind_dtype(py::module_& m) {
  m.def("match_cost", &cost<T>, py::arg("logits").noconvert(), py::arg("boxes").noconvert(),
        py::arg("labels").noconvert(), py::arg("target_boxes").noconvert(), py::arg("offsets").noconvert(),
        py::arg("options"));
  m.def("set_loss", &losses<T>, py::arg("logits").noconvert(), py::arg("boxes").noconvert(),
        py::arg("labels").noconvert(), py::arg("target_boxes").noconvert(), py::arg("offsets").noconvert(),
        py::arg("query_index").noconvert(), py::arg("options"));
  m.def("set_loss_backward", &gradients<T>, py::arg("logits").noconvert(), py::arg("boxes").noconvert(),
        py::arg("labels").noconvert(), py::arg("target_boxes").noconvert(), py::arg("offsets").noconvert(),
        py::arg("query_index").noconvert(), py::arg("options"), py::arg("upstream").noconvert());
}

}  // namespace

void bind_losses(py::module_& m) {
  py::class_<MatchOptions>(m, "MatchOptions")
      .def(py::init([](bool focal, bool corners, double cost_class, double cost_bbox, double cost_giou,
                       double focal_alpha, double focal_gamma, double focal_eps, double giou_eps, double box_scale) {
             return MatchOptions{focal,       corners,     cost_class, cost_bbox, cost_giou,
                                 focal_alpha, focal_gamma, focal_eps,  giou_eps,  box_scale};
           }),
           py::kw_only(), py::arg("focal"), py::arg("corners"), py::arg("cost_class"), py::arg("cost_bbox"),
           py::arg("cost_giou"), py::arg("focal_alpha"), py::arg("focal_gamma"), py::arg("focal_eps"),
           py::arg("giou_eps"), py::arg("box_scale"));
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
  bind_dtype<float>(m);
  bind_dtype<double>(m);
}

}  // namespace detr_fast

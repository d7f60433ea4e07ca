#include "match_cost.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "bindings/arrays.h"
#include "bindings/bindings.h"

namespace detr_fast {
namespace {

template <typename T>
Array<T> cost(const py::array_t<T>& logits, const py::array_t<T>& boxes, const Array<int64_t>& labels,
              const Array<float>& target_boxes, const Array<int32_t>& offsets, const MatchOptions& options) {
  const Batch<T> batch(logits, boxes, labels, target_boxes, offsets);
  Array<T> result({logits.shape(0), labels.shape(0), logits.shape(2)});
  T* data = result.mutable_data();
  py::gil_scoped_release unlocked;
  match_cost(batch.logits, batch.boxes, batch.targets, options, data);
  return result;
}

template <typename T>
void define(py::module_& m) {
  m.def("match_cost", &cost<T>, py::arg("logits").noconvert(), py::arg("boxes").noconvert(),
        py::arg("labels").noconvert(), py::arg("target_boxes").noconvert(), py::arg("offsets").noconvert(),
        py::arg("options"));
}

const Binding binding([](py::module_& m) {
  py::enum_<IouKind>(m, "IouKind")
      .value("giou", IouKind::kGiou)
      .value("iou", IouKind::kIou)
      .value("iof", IouKind::kIof);
  py::class_<MatchOptions>(m, "MatchOptions")
      .def(py::init([](bool focal, bool corners, double cost_class, double cost_bbox, double cost_giou,
                       double focal_alpha, double focal_gamma, double focal_eps, double giou_eps, double box_scale,
                       IouKind iou_kind) {
             return MatchOptions{focal,       corners,   cost_class, cost_bbox, cost_giou, focal_alpha,
                                 focal_gamma, focal_eps, giou_eps,   box_scale, iou_kind};
           }),
           py::kw_only(), py::arg("focal"), py::arg("corners"), py::arg("cost_class"), py::arg("cost_bbox"),
           py::arg("cost_giou"), py::arg("focal_alpha"), py::arg("focal_gamma"), py::arg("focal_eps"),
           py::arg("giou_eps"), py::arg("box_scale"), py::arg("iou_kind"));
  define<float>(m);
  define<double>(m);
});

}  // namespace
}  // namespace detr_fast

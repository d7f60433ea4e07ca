#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "assignment/batch.h"
#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/signals.h"

namespace detr_fast {
namespace {

void check(const py::array& cost, const std::vector<int64_t>& sizes, int64_t groups) {
  if (cost.ndim() != 3) throw py::value_error("cost must be [L,T,Q], got " + describe_shape(cost));
  require_aligned(cost, "cost");
  int64_t left = cost.shape(1);  // subtracted from, so that no sum can overflow
  bool fits = true;
  for (const int64_t size : sizes) {
    fits = fits && size >= 0 && size <= left;
    left -= fits ? size : 0;
  }
  if (!fits || left != 0) {
    throw py::value_error("cost must be [L,T,Q] with T the sum of the sizes, got " + describe_shape(cost));
  }
  if (groups < 1 || cost.shape(2) % groups != 0) {
    throw py::value_error(std::to_string(cost.shape(2)) + " queries cannot be divided into " + std::to_string(groups) +
                          " groups");
  }
}

// cost [L,T,Q], sizes [B] whose sum is T -> queries [L,G,T], target duals [L,G,T] and query duals [L,B,Q] or None,
// failures [(whether invalid, layer, image, target or -1)].
template <typename T>
py::tuple solve_batch(const py::array_t<T>& cost, std::vector<int64_t> sizes, int64_t groups, int num_threads,
                      bool with_duals) {
  check(cost, sizes, groups);
  const py::ssize_t layers = cost.shape(0), targets = cost.shape(1), queries = cost.shape(2);
  const auto images = static_cast<py::ssize_t>(sizes.size());
  Array<int64_t> query({layers, static_cast<py::ssize_t>(groups), targets});
  py::object target_dual = py::none(), query_dual = py::none();
  AssignmentBatch<T> batch = {};
  batch.cost = cost.data();
  batch.layer_stride = stride_of(cost, 0), batch.target_stride = stride_of(cost, 1);
  batch.query_stride = stride_of(cost, 2);
  batch.layers = layers, batch.groups = groups, batch.queries = queries / groups;
  batch.sizes = std::move(sizes), batch.targets = targets;
  batch.query = query.mutable_data();
  if (with_duals) {
    Array<double> u({layers, static_cast<py::ssize_t>(groups), targets}), v({layers, images, queries});
    batch.target_dual = u.mutable_data(), batch.query_dual = v.mutable_data();
    target_dual = std::move(u), query_dual = std::move(v);
  }
  {
    py::gil_scoped_release unlocked;
    batch.solve(num_threads, check_signals);
  }
  py::list failures;
  for (const auto& failure : batch.failures) {
    failures.append(py::make_tuple(failure.status == Status::kInvalid, failure.layer, failure.image, failure.target));
  }
  return py::make_tuple(std::move(query), std::move(target_dual), std::move(query_dual), std::move(failures));
}

template <typename T>
void define(py::module_& m) {
  m.def("solve_batch", &solve_batch<T>, py::arg("cost").noconvert(), py::arg("sizes"), py::arg("groups"),
        py::arg("num_threads"), py::arg("with_duals"));
}

const Binding binding([](py::module_& m) {
  define<float>(m);
  define<double>(m);
});

}  // namespace
}  // namespace detr_fast

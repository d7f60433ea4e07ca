// Python's view of the C++ backends: NumPy arrays in, NumPy arrays out, nothing of libtorch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "assignment/batch.h"
#include "bindings/losses.h"
#include "assignment/solver.h"

namespace py = pybind11;

namespace detr_fast {
namespace {

using Index = py::array_t<int64_t, py::array::c_style>;

template <typename T>
std::ptrdiff_t stride(const py::array_t<T>& array, py::ssize_t axis) {
  return array.strides(axis) / static_cast<py::ssize_t>(sizeof(T));
}

// cost [N,M] -> (row indices, column indices), rows ascending.
template <typename T>
py::tuple solve_matrix(const py::array& cost) {
  constexpr auto kSize = static_cast<py::ssize_t>(sizeof(T));
  const MatrixView<T> matrix = {static_cast<const T*>(cost.data()), cost.shape(0), cost.shape(1),
                                cost.strides(0) / kSize, cost.strides(1) / kSize};
  AssignmentSolver& solver = thread_solver();
  Status status;
  {
    py::gil_scoped_release unlocked;
    status = solver.solve(matrix);
  }
  if (status == Status::kInvalid) throw py::value_error("matrix contains invalid numeric entries");
  if (status == Status::kInfeasible) throw py::value_error("cost matrix is infeasible");

  Index rows(solver.size()), cols(solver.size());
  int64_t* row = rows.mutable_data();
  int64_t* col = cols.mutable_data();
  if (solver.by_column()) {
    solver.order_partners(row, col);
  } else {
    for (int64_t k = 0; k < solver.size(); ++k) {
      row[k] = k;
      col[k] = solver.partner(k);
    }
  }
  return py::make_tuple(std::move(rows), std::move(cols));
}

// The answer; None if `cost` is not an aligned two-dimensional array of native float32 or float64.
py::object solve(py::handle cost) {
  if (!py::isinstance<py::array>(cost)) return py::none();
  const auto array = py::reinterpret_borrow<py::array>(cost);
  const bool aligned = array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  const py::dtype type = array.dtype();
  const char order = type.byteorder();
  if (array.ndim() != 2 || !aligned || (order != '=' && order != '|')) return py::none();
  if (type.num() == py::detail::npy_api::NPY_FLOAT_) return solve_matrix<float>(array);
  if (type.num() == py::detail::npy_api::NPY_DOUBLE_) return solve_matrix<double>(array);
  return py::none();
}

// cost [L,T,Q], sizes [B] that sum to T -> queries [L,G,T], target duals [L,G,T] and query duals [L,B,Q] or None,
// failures [(whether invalid, layer, image, target or -1)].
template <typename T>
py::tuple solve_batch(const py::array_t<T>& cost, std::vector<int64_t> sizes, int64_t groups, int num_threads,
                      bool with_duals) {
  using Doubles = py::array_t<double, py::array::c_style>;
  const py::ssize_t layers = cost.shape(0), targets = cost.shape(1), queries = cost.shape(2);
  const auto images = static_cast<py::ssize_t>(sizes.size());
  Index query({layers, static_cast<py::ssize_t>(groups), targets});
  py::object target_dual = py::none(), query_dual = py::none();
  AssignmentBatch<T> batch = {};
  batch.cost = cost.data();
  batch.layer_stride = stride(cost, 0), batch.target_stride = stride(cost, 1), batch.query_stride = stride(cost, 2);
  batch.layers = layers, batch.groups = groups, batch.queries = queries / groups;
  batch.sizes = std::move(sizes), batch.targets = targets;
  batch.query = query.mutable_data();
  if (with_duals) {
    Doubles u({layers, static_cast<py::ssize_t>(groups), targets}), v({layers, images, queries});
    batch.target_dual = u.mutable_data(), batch.query_dual = v.mutable_data();
    target_dual = std::move(u), query_dual = std::move(v);
  }
  {
    py::gil_scoped_release unlocked;
    batch.solve(num_threads);
  }
  py::list failures;
  for (const auto& failure : batch.failures) {
    failures.append(
        py::make_tuple(failure.status == Status::kInvalid, failure.layer, failure.image, failure.target));
  }
  return py::make_tuple(std::move(query), std::move(target_dual), std::move(query_dual), std::move(failures));
}

template <typename T>
void define_for(py::module_& m) {
  m.def("solve_batch", &solve_batch<T>, py::arg("cost").noconvert(), py::arg("sizes"), py::arg("groups"),
        py::arg("num_threads"), py::arg("with_duals"));
}

}  // namespace
}  // namespace detr_fast

PYBIND11_MODULE(_C, m, py::mod_gil_not_used(), py::multiple_interpreters::shared_gil()) {
  m.doc() = "C++ backends of detr_fast; called through detr_fast.ops.";
  detr_fast::define_for<float>(m);
  detr_fast::define_for<double>(m);
  m.def("solve", &detr_fast::solve);
  m.def("instruction_sets", &detr_fast::instruction_sets);
  m.def("use_instruction_set", &detr_fast::use_instruction_set);
  detr_fast::bind_losses(m);
}

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "assignment/solver.h"
#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/signals.h"
#include "common/checkpoint.h"

namespace detr_fast {
namespace {

// cost [N,M] -> (row indices, column indices), rows ascending.
template <typename T>
py::tuple solve_matrix(const py::array& cost) {
  constexpr auto kSize = static_cast<py::ssize_t>(sizeof(T));
  const MatrixView<T> matrix = {static_cast<const T*>(cost.data()), cost.shape(0), cost.shape(1),
                                cost.strides(0) / kSize, cost.strides(1) / kSize};
  ThreadSolver thread_solver;
  AssignmentSolver& solver = *thread_solver;
  Checkpoint checkpoint(check_signals);
  Status status;
  {
    py::gil_scoped_release unlocked;
    status = solver.solve(matrix, checkpoint);
  }
  if (status == Status::kInvalid) throw py::value_error("matrix contains invalid numeric entries");
  if (status == Status::kInfeasible) throw py::value_error("cost matrix is infeasible");

  Array<int64_t> rows(solver.size()), cols(solver.size());
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

// The answer, or None if `cost` is not an aligned two-dimensional array of native float32 or float64.
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

const Binding binding([](py::module_& m) { m.def("solve", &solve, py::arg("cost")); });

}  // namespace
}  // namespace detr_fast

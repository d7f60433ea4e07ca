// Python's view of the C++ backends: NumPy arrays in, NumPy arrays out, nothing of libtorch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>
#include <vector>

#include "bindings_losses.h"
#include "linear_sum_assignment.h"

namespace py = pybind11;

namespace detr_fast {
namespace {

using Index = py::array_t<int64_t, py::array::c_style>;

template <typename T>
MatrixView<T> view(const py::array_t<T>& array, py::ssize_t row_axis) {
  const auto stride = [&](py::ssize_t axis) { return array.strides(axis) / static_cast<py::ssize_t>(sizeof(T)); };
  return {array.data(), array.shape(row_axis), array.shape(row_axis + 1), stride(row_axis), stride(row_axis + 1)};
}

// cost [N,M] -> (row indices, column indices), rows ascending.
template <typename T>
py::tuple solve(const py::array_t<T>& cost) {
  const MatrixView<T> matrix = view(cost, 0);
  const bool tall = matrix.cols < matrix.rows;
  AssignmentSolver solver;
  Status status;
  {
    py::gil_scoped_release unlocked;
    status = solver.solve(tall ? matrix.transposed() : matrix);
  }
  if (status == Status::kInvalid) throw py::value_error("matrix contains invalid numeric entries");
  if (status == Status::kInfeasible) throw py::value_error("cost matrix is infeasible");

  const std::vector<int64_t>& match = solver.column_of_row();
  const auto count = static_cast<py::ssize_t>(match.size());
  std::vector<int64_t> order(match.size());
  for (size_t k = 0; k < order.size(); ++k) order[k] = static_cast<int64_t>(k);
  if (tall) std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return match[a] < match[b]; });
  Index rows(count), cols(count);
  for (py::ssize_t k = 0; k < count; ++k) {
    rows.mutable_at(k) = tall ? match[order[k]] : k;
    cols.mutable_at(k) = tall ? order[k] : match[k];
  }
  return py::make_tuple(rows, cols);
}

struct Failure {
  Status status = Status::kSolved;
  int64_t layer = 0, image = 0, target = -1;

  std::string message() const {
    std::string where = "layer " + std::to_string(layer) + ", image " + std::to_string(image);
    if (status == Status::kInfeasible) {
      return where + ": the cost matrix is infeasible, too many pairs are forbidden by +inf";
    }
    if (target >= 0) where += ", target " + std::to_string(target);
    return where + ": the matching cost holds NaN or -inf; were the model's logits and boxes finite?";
  }
};

// One image's queries of one group, for all its targets: a [targets, queries] block of the cost.
// Writes the query of each target, counted over all groups; targets without one keep their -1.
template <typename T>
Status solve_block(AssignmentSolver& solver, const MatrixView<T>& block, int64_t first_query, int64_t* query,
                   int64_t* invalid_target) {
  // SciPy solves for the smaller side, and for the queries where the sides are equal.
  const bool by_target = block.rows < block.cols;
  const Status status = solver.solve(by_target ? block : block.transposed());
  if (status == Status::kInvalid && by_target) *invalid_target = solver.invalid_row();
  if (status != Status::kSolved) return status;
  const std::vector<int64_t>& match = solver.column_of_row();
  for (size_t k = 0; k < match.size(); ++k) {
    const auto row = static_cast<int64_t>(k);
    if (by_target) {
      query[row] = first_query + match[k];
    } else {
      query[match[k]] = first_query + row;
    }
  }
  return status;
}

// cost [L,T,Q], sizes [B] that sum to T -> query of each target [L,G,T], -1 for none.
template <typename T>
Index solve_batch(const py::array_t<T>& cost, const Index& sizes, int64_t groups) {
  const py::ssize_t layers = cost.shape(0), targets = cost.shape(1), queries = cost.shape(2) / groups;
  const auto layer_stride = cost.strides(0) / static_cast<py::ssize_t>(sizeof(T));
  const MatrixView<T> layer_view = view(cost, 1);
  const int64_t* size = sizes.data();
  const py::ssize_t images = sizes.shape(0);

  Index result({layers, static_cast<py::ssize_t>(groups), targets});
  int64_t* query = result.mutable_data();
  Failure failure;
  {
    py::gil_scoped_release unlocked;
    std::fill_n(query, layers * groups * targets, int64_t{-1});
    AssignmentSolver solver;
    for (py::ssize_t layer = 0; layer < layers && failure.status == Status::kSolved; ++layer) {
      for (int64_t group = 0; group < groups && failure.status == Status::kSolved; ++group) {
        MatrixView<T> block = layer_view;
        block.data += layer * layer_stride + group * queries * block.col_stride;
        block.cols = queries;
        for (py::ssize_t image = 0; image < images; ++image) {
          block.rows = size[image];
          int64_t invalid_target = -1;
          const Status status = solve_block(solver, block, group * queries, query, &invalid_target);
          if (status != Status::kSolved) {
            failure = {status, layer, image, invalid_target};
            break;
          }
          block.data += size[image] * block.row_stride;
          query += size[image];
        }
      }
    }
  }
  if (failure.status != Status::kSolved) throw py::value_error(failure.message());
  return result;
}

}  // namespace
}  // namespace detr_fast

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.doc() = "C++ backends of detr_fast; called through detr_fast.ops.";
  m.def("solve", &detr_fast::solve<float>, py::arg("cost").noconvert());
  m.def("solve", &detr_fast::solve<double>, py::arg("cost").noconvert());
  m.def("solve_batch", &detr_fast::solve_batch<float>, py::arg("cost").noconvert(), py::arg("sizes"),
        py::arg("groups"));
  m.def("solve_batch", &detr_fast::solve_batch<double>, py::arg("cost").noconvert(), py::arg("sizes"),
        py::arg("groups"));
  detr_fast::bind_losses(m);
}

// The module detr_fast._C: NumPy arrays in, NumPy arrays out, without libtorch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "common/instruction_set.h"

PYBIND11_MODULE(_C, m, py::mod_gil_not_used(), py::multiple_interpreters::shared_gil()) {
  m.doc() = "C++ backends of detr_fast; called through detr_fast.ops.";
  m.def("instruction_sets", &detr_fast::instruction_sets);
  m.def("use_instruction_set", &detr_fast::use_instruction_set, py::arg("name"));
  for (const auto define : detr_fast::Binding::all()) define(m);
}

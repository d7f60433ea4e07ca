// How the file of an op adds its functions to the module.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

namespace py = pybind11;

namespace detr_fast {

// The file of an op defines one static Binding; module.cpp calls every one of them.
class Binding {
 public:
  using Function = void (*)(py::module_&);

  explicit Binding(Function define) { all().push_back(define); }

  static std::vector<Function>& all() {
    static std::vector<Function> functions;
    return functions;
  }
};

}  // namespace detr_fast

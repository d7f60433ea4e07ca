// Signals that arrive while the GIL is released.
#pragma once

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace detr_fast {

// Runs Python's signal handlers, and throws what they raise, such as KeyboardInterrupt. Only the main thread has
// signals to handle. The caller does not hold the GIL.
inline void check_signals() {
  const py::gil_scoped_acquire locked;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

}  // namespace detr_fast

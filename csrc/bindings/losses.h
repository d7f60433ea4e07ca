#pragma once

#include <pybind11/pybind11.h>

namespace detr_fast {

void bind_losses(pybind11::module_& m);

}  // namespace detr_fast

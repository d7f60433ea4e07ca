// SciPy's algorithm in its simplest form, as a reference for the solver.
#pragma once

#include <cstdint>
#include <vector>

#include "assignment/matrix.h"

namespace detr_fast {

// Columns for the rows of `cost` [rows, cols], row-major, with rows <= cols.
Status solve_reference(const std::vector<double>& cost, int64_t rows, int64_t cols,
                       std::vector<int64_t>* column_of_row);

}  // namespace detr_fast

// The solver compiled for any machine.
#include <cstdint>
#include <limits>

#include "assignment/arena.h"
#include "assignment/matrix.h"

namespace detr_fast::portable {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

#include "assignment/simd_portable-inl.h"
// These use Pack.
#include "assignment/scan-inl.h"
#include "assignment/free_columns-inl.h"
#include "assignment/jonker_volgenant-inl.h"
#include "assignment/jonker_volgenant_start-inl.h"
#include "assignment/jonker_volgenant_search-inl.h"
#include "assignment/uniqueness-inl.h"
#include "assignment/scipy_order-inl.h"
#include "assignment/solve-inl.h"

}  // namespace detr_fast::portable

// The solver compiled for any machine.
#include <cstdint>
#include <limits>

#include "arena.h"
#include "rows.h"

namespace detr_fast::portable {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

#include "simd_portable.h"
// These use Pack.
#include "scan.h"
#include "free_columns.h"
#include "fast_path.h"
#include "fast_path_start.h"
#include "fast_path_search.h"
#include "certificate.h"
#include "scipy_order.h"
#include "solve_rows.h"

}  // namespace detr_fast::portable

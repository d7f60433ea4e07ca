// The solver compiled for x86 with AVX2.
#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#include <cstdint>
#include <limits>

#include "arena.h"
#include "rows.h"

// Only what follows is compiled for these instructions: anything shared with other files must run everywhere.
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif

namespace detr_fast::avx2 {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

#include "simd_avx2.h"
#include "transpose_x86.h"
// These use Pack.
#include "scan.h"
#include "free_columns.h"
#include "fast_path.h"
#include "fast_path_start.h"
#include "fast_path_search.h"
#include "certificate.h"
#include "scipy_order.h"
#include "solve_rows.h"

}  // namespace detr_fast::avx2

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif

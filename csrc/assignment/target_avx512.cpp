// The solver compiled for x86 with AVX-512.
#if defined(__x86_64__) && defined(__GNUC__)

#pragma GCC diagnostic ignored "-Wuninitialized"  // in GCC's own header, of undefined vectors that are masked out
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include <cstdint>
#include <limits>

#include "assignment/arena.h"
#include "assignment/matrix.h"

// Only what follows is compiled for these instructions: anything shared with other files must run everywhere.
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl")
#endif

namespace detr_fast::avx512 {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

#include "assignment/simd_avx512-inl.h"
#include "assignment/transpose_x86-inl.h"
// These use Pack.
#include "assignment/scan-inl.h"
#include "assignment/free_columns-inl.h"
#include "assignment/jonker_volgenant-inl.h"
#include "assignment/jonker_volgenant_start-inl.h"
#include "assignment/jonker_volgenant_search-inl.h"
#include "assignment/uniqueness-inl.h"
#include "assignment/scipy_order-inl.h"
#include "assignment/solve-inl.h"

}  // namespace detr_fast::avx512

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif

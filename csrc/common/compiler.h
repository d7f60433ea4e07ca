// What GCC and Clang offer beyond standard C++, and a portable form of it for every other compiler. The attributes of
// functions and the pragmas only make code faster; without them the same results are computed.
//
// Other compilers, MSVC among them, compile the ops for the baseline of the machine alone: they have no attribute that
// compiles a function for another instruction set, and no vector extensions.
//
// DETR_FAST_STANDARD_CPP makes GCC and Clang compile the portable form, with which it is tested.
#pragma once

#include <cstdint>

#if defined(__GNUC__) && !defined(DETR_FAST_STANDARD_CPP)
#define DETR_FAST_GNU 1
#endif

#ifdef DETR_FAST_GNU
#define DETR_FAST_PRAGMA(text) _Pragma(#text)
#else
#define DETR_FAST_PRAGMA(text)
#endif

// Small functions are inlined into the loops that call them, so that the loops become vector code.
#if defined(DETR_FAST_GNU)
#define DETR_FAST_INLINE inline __attribute__((always_inline))
#define DETR_FAST_INLINE_LAMBDA __attribute__((always_inline))
#elif defined(_MSC_VER)
#define DETR_FAST_INLINE __forceinline
#define DETR_FAST_INLINE_LAMBDA
#else
#define DETR_FAST_INLINE inline
#define DETR_FAST_INLINE_LAMBDA
#endif

// Steps of an algorithm stay functions, so that each has its own registers, however large the file becomes.
#if defined(DETR_FAST_GNU)
#define DETR_FAST_NOINLINE __attribute__((noinline))
#elif defined(_MSC_VER)
#define DETR_FAST_NOINLINE __declspec(noinline)
#else
#define DETR_FAST_NOINLINE
#endif

// The iterations of the loop that follows are independent of each other, or only add to or maximize a variable in an
// order that does not matter.
#define DETR_FAST_SIMD DETR_FAST_PRAGMA(omp simd)
#define DETR_FAST_SIMD_SUM(variable) DETR_FAST_PRAGMA(omp simd reduction(+ : variable))
#define DETR_FAST_SIMD_MAX(variable) DETR_FAST_PRAGMA(omp simd reduction(max : variable))

// Only functions between the two are compiled for the named instructions: code that is shared with other files must run
// on every machine.
#ifdef __clang__
#define DETR_FAST_PUSH_TARGET(names) \
  DETR_FAST_PRAGMA(clang attribute push(__attribute__((target(names))), apply_to = function))
#define DETR_FAST_POP_TARGET DETR_FAST_PRAGMA(clang attribute pop)
#else
#define DETR_FAST_PUSH_TARGET(names) DETR_FAST_PRAGMA(GCC push_options) DETR_FAST_PRAGMA(GCC target names)
#define DETR_FAST_POP_TARGET DETR_FAST_PRAGMA(GCC pop_options)
#endif

namespace detr_fast {

// The index of the lowest bit that is set; there is one.
inline int lowest_bit(uint32_t bits) {
#ifdef DETR_FAST_GNU
  return __builtin_ctz(bits);
#else
  int index = 0;
  for (; !(bits & 1); bits >>= 1) ++index;
  return index;
#endif
}

// How many bits are set.
inline int count_bits(uint32_t bits) {
#ifdef DETR_FAST_GNU
  return __builtin_popcount(bits);
#else
  int count = 0;
  for (; bits; bits &= bits - 1) ++count;
  return count;
#endif
}

}  // namespace detr_fast

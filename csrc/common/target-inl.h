// What depends on the instruction set that is compiled for: the namespace, and the pragmas around it.
#include "common/instruction_set.h"

#if defined(DETR_FAST_COMMON_TARGET_INL_H) == defined(DETR_FAST_TOGGLE)
#ifdef DETR_FAST_COMMON_TARGET_INL_H
#undef DETR_FAST_COMMON_TARGET_INL_H
#else
#define DETR_FAST_COMMON_TARGET_INL_H
#endif

#undef DETR_FAST_NAMESPACE
#undef DETR_FAST_BEFORE_NAMESPACE
#undef DETR_FAST_AFTER_NAMESPACE

#define DETR_FAST_PORTABLE 1
#define DETR_FAST_AVX2 2
#define DETR_FAST_AVX512 3

#ifndef DETR_FAST_TARGET  // opened alone
#define DETR_FAST_TARGET DETR_FAST_PORTABLE
#endif

// Small functions are inlined into the loops that call them, so that the loops become vector code.
#define DETR_FAST_INLINE inline __attribute__((always_inline))
#define DETR_FAST_INLINE_LAMBDA __attribute__((always_inline))

// Steps of an algorithm stay functions, so that each has its own registers, however large the file becomes.
#define DETR_FAST_NOINLINE __attribute__((noinline))

#define DETR_FAST_PRAGMA(text) _Pragma(#text)

// Only what lies between the two is compiled for these instructions: code that is shared with other files must run on
// every machine.
#ifdef __clang__
#define DETR_FAST_PUSH_TARGET(names) \
  DETR_FAST_PRAGMA(clang attribute push(__attribute__((target(names))), apply_to = function))
#define DETR_FAST_POP_TARGET DETR_FAST_PRAGMA(clang attribute pop)
#else
#define DETR_FAST_PUSH_TARGET(names) DETR_FAST_PRAGMA(GCC push_options) DETR_FAST_PRAGMA(GCC target names)
#define DETR_FAST_POP_TARGET DETR_FAST_PRAGMA(GCC pop_options)
#endif

#define DETR_FAST_REQUIRE_SEMICOLON static_assert(true, "a semicolon follows")

#if DETR_FAST_TARGET == DETR_FAST_AVX512
#define DETR_FAST_NAMESPACE avx512
#define DETR_FAST_BEFORE_NAMESPACE() DETR_FAST_PUSH_TARGET("avx512f,avx512dq,avx512vl") DETR_FAST_REQUIRE_SEMICOLON
#define DETR_FAST_AFTER_NAMESPACE() DETR_FAST_POP_TARGET DETR_FAST_REQUIRE_SEMICOLON
#elif DETR_FAST_TARGET == DETR_FAST_AVX2
#define DETR_FAST_NAMESPACE avx2
#define DETR_FAST_BEFORE_NAMESPACE() DETR_FAST_PUSH_TARGET("avx2") DETR_FAST_REQUIRE_SEMICOLON
#define DETR_FAST_AFTER_NAMESPACE() DETR_FAST_POP_TARGET DETR_FAST_REQUIRE_SEMICOLON
#else
#define DETR_FAST_NAMESPACE portable
#define DETR_FAST_BEFORE_NAMESPACE() DETR_FAST_REQUIRE_SEMICOLON
#define DETR_FAST_AFTER_NAMESPACE() DETR_FAST_REQUIRE_SEMICOLON
#endif

#endif

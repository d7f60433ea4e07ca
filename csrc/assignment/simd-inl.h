// Vectors of the instruction set that is compiled for: Pack<T>, its operations, and transpose_tile().
#if defined(DETR_FAST_ASSIGNMENT_SIMD_INL_H) == defined(DETR_FAST_TOGGLE)
#ifdef DETR_FAST_ASSIGNMENT_SIMD_INL_H
#undef DETR_FAST_ASSIGNMENT_SIMD_INL_H
#else
#define DETR_FAST_ASSIGNMENT_SIMD_INL_H
#endif

#include "common/target-inl.h"

#if DETR_FAST_TARGET == DETR_FAST_AVX512
#include "assignment/simd_avx512-inl.h"
#include "assignment/transpose_x86-inl.h"
#elif DETR_FAST_TARGET == DETR_FAST_AVX2
#include "assignment/simd_avx2-inl.h"
#include "assignment/transpose_x86-inl.h"
#else
#include "assignment/simd_portable-inl.h"
#endif

#endif

// Includes a file once for each instruction set. An op's source file defines DETR_FAST_TARGET_INCLUDE as the name of
// its -inl.h file, includes this header and then calls the versions through DETR_FAST_DISPATCH.
//
// The files that are included follow the -inl.h convention of Highway (https://github.com/google/highway):
// - Ordinary headers are included first, so that what they define is compiled for every machine.
// - The include guard is toggled instead of defined, because the file is read again for the next instruction set. A
//   file that only some instruction sets include has none; the file that includes it has.
// - The code lies between DETR_FAST_BEFORE_NAMESPACE() and DETR_FAST_AFTER_NAMESPACE(), in the namespace
//   detr_fast::DETR_FAST_NAMESPACE.
// - A file that is opened alone, by an editor, is compiled for the instruction set that it names, or else for the
//   portable one.
#include "common/dispatch.h"

#ifndef DETR_FAST_TARGET_INCLUDE
#error "define DETR_FAST_TARGET_INCLUDE before including foreach_target.h"
#endif

#define DETR_FAST_TARGET DETR_FAST_PORTABLE
#include DETR_FAST_TARGET_INCLUDE
#undef DETR_FAST_TARGET
#include "common/toggle-inl.h"

#ifdef DETR_FAST_X86
#define DETR_FAST_TARGET DETR_FAST_AVX2
#include DETR_FAST_TARGET_INCLUDE
#undef DETR_FAST_TARGET
#include "common/toggle-inl.h"

#define DETR_FAST_TARGET DETR_FAST_AVX512
#include DETR_FAST_TARGET_INCLUDE
#undef DETR_FAST_TARGET
#include "common/toggle-inl.h"
#endif

#undef DETR_FAST_TARGET_INCLUDE

// Calls the version of a function that was compiled for the instruction set in use; see common/foreach_target.h.
#pragma once

#include "common/instruction_set.h"

namespace detr_fast {

template <typename Function>
Function* version_in_use(Function* portable, [[maybe_unused]] Function* avx2, [[maybe_unused]] Function* avx512) {
  switch (current_instruction_set()) {
    case InstructionSet::kAvx512: return avx512;
    case InstructionSet::kAvx2: return avx2;
    default: return portable;
  }
}

}  // namespace detr_fast

// The argument names a function of detr_fast::<instruction set>, with its template arguments where it has any.
#ifdef DETR_FAST_X86
#define DETR_FAST_DISPATCH(function)                                                          \
  ::detr_fast::version_in_use(&::detr_fast::portable::function, &::detr_fast::avx2::function, \
                              &::detr_fast::avx512::function)
#else
#define DETR_FAST_DISPATCH(function) (&::detr_fast::portable::function)
#endif

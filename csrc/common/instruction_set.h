// The instruction sets for which code is compiled, and the choice among them at run time, which governs every op.
#pragma once

#include <string>
#include <vector>

#include "common/compiler.h"

#if defined(__x86_64__) && defined(DETR_FAST_GNU)
#define DETR_FAST_X86 1
#endif

namespace detr_fast {

enum class InstructionSet { kPortable, kAvx2, kAvx512 };

// The instruction set in use: the widest that this machine has, unless another one was chosen.
InstructionSet current_instruction_set();

// The instruction sets that this machine has, widest first, as "avx512", "avx2", "portable".
std::vector<std::string> instruction_sets();

// Uses the named instruction set from now on, for tests. Returns false if this machine does not have it.
bool use_instruction_set(const std::string& name);

}  // namespace detr_fast

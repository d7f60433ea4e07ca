#include "common/instruction_set.h"

#include <atomic>

namespace detr_fast {
namespace {

struct Named {
  const char* name;
  InstructionSet set;
};

const std::vector<Named>& available() {
  static const std::vector<Named> sets = [] {
    std::vector<Named> found;
#ifdef DETR_FAST_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      found.push_back({"avx512", InstructionSet::kAvx512});
    }
    if (__builtin_cpu_supports("avx2")) found.push_back({"avx2", InstructionSet::kAvx2});
#endif
    found.push_back({"portable", InstructionSet::kPortable});
    return found;
  }();
  return sets;
}

std::atomic<InstructionSet>& current() {
  static std::atomic<InstructionSet> set{available().front().set};
  return set;
}

}  // namespace

InstructionSet current_instruction_set() { return current().load(std::memory_order_relaxed); }

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Named& set : available()) names.emplace_back(set.name);
  return names;
}

bool use_instruction_set(const std::string& name) {
  for (const Named& set : available()) {
    if (name != set.name) continue;
    current().store(set.set, std::memory_order_relaxed);
    return true;
  }
  return false;
}

}  // namespace detr_fast

// Checks of what an op indexes memory by. They throw std::invalid_argument, which is ValueError in Python, and come
// before any access that depends on the values.
#pragma once

#include <cstdint>
#include <string>

#include "common/arrays.h"

namespace detr_fast {

// Requires offsets that divide the targets, at most all of them, among `images`, and labels in [0, classes).
void check_targets(const PackedTargets& targets, int64_t images, int64_t classes);

// Names a target that check_targets() has accepted: "image 0, target 1", or "row 7" where it is of no image.
std::string describe_target(const PackedTargets& targets, int64_t target);

}  // namespace detr_fast

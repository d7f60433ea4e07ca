#include "common/checks.h"

#include <stdexcept>

namespace detr_fast {
namespace {

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument(message); }

void check_offsets(const PackedTargets& targets) {
  const int32_t* offsets = targets.offsets;
  if (offsets[0] != 0) fail("offsets must begin with 0, got " + std::to_string(offsets[0]));
  for (int64_t image = 0; image < targets.images; ++image) {
    if (offsets[image + 1] >= offsets[image]) continue;
    fail("offsets must not decrease, but image " + std::to_string(image) + " has rows " +
         std::to_string(offsets[image]) + ":" + std::to_string(offsets[image + 1]));
  }
  if (offsets[targets.images] > targets.count) {
    fail("offsets end at " + std::to_string(offsets[targets.images]) + ", but there are " +
         std::to_string(targets.count) + " targets");
  }
}

}  // namespace

void check_targets(const PackedTargets& targets, int64_t images, int64_t classes) {
  if (targets.images != images) {
    fail("predictions are for " + std::to_string(images) + " images, targets for " + std::to_string(targets.images));
  }
  check_offsets(targets);
  for (int64_t t = 0; t < targets.offsets[images]; ++t) {
    const int64_t label = targets.labels[t];
    if (label >= 0 && label < classes) continue;
    fail(describe_target(targets, t) + ": label " + std::to_string(label) + " is out of range for " +
         std::to_string(classes) + " classes (labels run from 0 to " + std::to_string(classes - 1) +
         "); build the model with more classes or map the labels to contiguous ones");
  }
}

std::string describe_target(const PackedTargets& targets, int64_t target) {
  for (int64_t image = 0; image < targets.images; ++image) {
    if (target >= targets.offsets[image + 1]) continue;
    return "image " + std::to_string(image) + ", target " + std::to_string(target - targets.offsets[image]);
  }
  return "row " + std::to_string(target);
}

}  // namespace detr_fast

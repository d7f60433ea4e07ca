// Lets long work be ended from outside.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>

#include "common/compiler.h"

namespace detr_fast {

// Long work counts its steps here, a step being about a nanosecond. Every so many of them the callback is called, which
// throws where the work is to end.
class Checkpoint {
 public:
  using Callback = std::function<void()>;

  explicit Checkpoint(Callback callback) : callback_(std::move(callback)) {}

  void count(int64_t steps) {
    left_ -= steps;
    if (left_ < 0) reach();
  }

 private:
  static constexpr int64_t kSteps = int64_t{1} << 26;

  DETR_FAST_NOINLINE void reach() {
    left_ = kSteps;
    callback_();
  }

  const Callback callback_;
  int64_t left_ = kSteps;
};

}  // namespace detr_fast

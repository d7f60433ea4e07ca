#include "assignment/arena.h"

#include <algorithm>
#include <cstdint>

namespace detr_fast {

void Arena::clear() {
  if (capacity_ > kKept) {
    chunks_.clear();
    first_ = nullptr;
    capacity_ = 0;
  } else if (chunks_.size() > 1) {
    chunks_.erase(chunks_.begin(), chunks_.end() - 1);  // the newest is the largest
  }
  next_ = first_;
  left_ = capacity_;
}

void Arena::grow(size_t bytes) {
  const size_t size = std::max(2 * (capacity_ + bytes), size_t{1} << 14);
  chunks_.emplace_back(new char[size + kAlignment]);
  const auto address = reinterpret_cast<uintptr_t>(chunks_.back().get());
  first_ = chunks_.back().get() + (kAlignment - address % kAlignment) % kAlignment;
  next_ = first_;
  left_ = capacity_ = size;
}

}  // namespace detr_fast

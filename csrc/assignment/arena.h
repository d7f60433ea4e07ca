// Scratch memory that is allocated from the front of a chunk and released all at once.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace detr_fast {

class Arena {
 public:
  static constexpr size_t kAlignment = 64;  // the widest vector, and a cache line

  // Memory for `count` objects of `size` bytes, valid until clear().
  void* take(size_t count, size_t size) {
    const size_t bytes = (count * size + kAlignment - 1) / kAlignment * kAlignment;
    if (bytes > left_) grow(bytes);
    char* memory = next_;
    next_ += bytes;
    left_ -= bytes;
    return memory;
  }

  // Releases every allocation. Keeps the memory for the next problem, unless there is more than kKept of it.
  void clear();

 private:
  static constexpr size_t kKept = size_t{64} << 20;

  void grow(size_t bytes);

  std::vector<std::unique_ptr<char[]>> chunks_;
  char* next_ = nullptr;
  size_t left_ = 0;
  char* first_ = nullptr;  // of the newest chunk
  size_t capacity_ = 0;    // of the newest chunk
};

}  // namespace detr_fast

// The properties that are fuzzed. Each function turns bytes into an input and aborts where a result is wrong.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace detr_fast {

inline void require(bool condition, const char* property) {
  if (condition) return;
  std::fprintf(stderr, "violated: %s\n", property);
  std::abort();
}

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  uint8_t next() { return index_ < size_ ? data_[index_++] : 0; }
  int64_t below(int64_t limit) { return (next() * 256 + next()) % limit; }
  double unit() { return static_cast<double>(below(65536)) / 65536; }

 private:
  const uint8_t* data_;
  size_t size_, index_ = 0;
};

void check_assignment(Bytes& bytes);        // one matrix, against the reference
void check_assignment_batch(Bytes& bytes);  // with several threads
void check_losses(Bytes& bytes);            // match_cost, set_loss and its backward
void check_refusals(Bytes& bytes);          // the same with an index out of range

}  // namespace detr_fast

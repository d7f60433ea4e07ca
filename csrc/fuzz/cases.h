// The properties that are fuzzed. Each function turns bytes into an input and aborts where a result is wrong.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>

namespace detr_fast {

inline void require(bool condition, const char* property) {
  if (condition) return;
  std::fprintf(stderr, "violated: %s\n", property);
  std::abort();
}

// An array that ends where its contents do, so that a sanitizer reports any access beyond them.
template <typename T>
class Exact {
 public:
  explicit Exact(int64_t size) : data_(new T[size]()), size_(size) {}
  T* data() { return data_.get(); }
  T& operator[](int64_t k) { return data_[k]; }
  T* begin() { return data(); }
  T* end() { return data() + size_; }
  int64_t size() const { return size_; }

 private:
  std::unique_ptr<T[]> data_;
  int64_t size_;
};

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

void check_deformable_attention(Bytes& bytes);  // both ops and their backward, and sizes that do not fit
void check_images(Bytes& bytes);                // normalize_and_pad, and layouts that do not fit

}  // namespace detr_fast

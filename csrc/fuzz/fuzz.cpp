// Fuzzes the ops with random bytes:  fuzz COUNT [SEED]
// With libFuzzer, define DETR_FAST_LIBFUZZER.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "fuzz/cases.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  detr_fast::Bytes bytes(data, size);
  switch (bytes.next() % 8) {
    case 0: detr_fast::check_assignment_batch(bytes); break;
    case 1:
    case 2: detr_fast::check_losses(bytes); break;
    case 3: detr_fast::check_refusals(bytes); break;
    case 4: detr_fast::check_deformable_attention(bytes); break;
    case 5: detr_fast::check_images(bytes); break;
    default: detr_fast::check_assignment(bytes);
  }
  return 0;
}

#ifndef DETR_FAST_LIBFUZZER
int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: fuzz COUNT [SEED]\n");
    return 2;
  }
  const long long count = std::atoll(argv[1]);
  std::mt19937_64 random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0);
  std::vector<uint8_t> data(16384);
  for (long long input = 0; input < count; ++input) {
    for (size_t k = 0; k < data.size(); k += 8) {
      const uint64_t word = random();
      std::copy_n(reinterpret_cast<const uint8_t*>(&word), 8, data.data() + k);
    }
    LLVMFuzzerTestOneInput(data.data(), data.size());
  }
  std::printf("%lld inputs, nothing found\n", count);
  return 0;
}
#endif

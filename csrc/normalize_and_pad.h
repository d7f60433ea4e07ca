// Normalization and padding of packed images.
#pragma once

#include <cstdint>

namespace detr_fast {

// Images of different sizes, one after the other, each in the order height, width, channel.
struct PackedImages {
  const uint8_t* pixels;
  int64_t num_bytes;
  const int64_t* layout;  // for each image: first byte, height, width, whether mirrored
  int64_t count;
};

// Writes the batch, [B,H,W,3] with channels last, else [B,3,H,W], and the mask [B,H,W], with up to `num_threads`
// threads. The value of a pixel p of channel c is table[256 * c + p]; a Word is the memory of a floating point number,
// of which all zeros are 0. Throws std::invalid_argument where the layout leaves the buffer or the batch.
template <typename Word>
void normalize_and_pad(const PackedImages& images, const Word* table, int64_t height, int64_t width, bool channels_last,
                       int num_threads, Word* batch, bool* mask);

}  // namespace detr_fast

#include "normalize_and_pad.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "common/parallel_for.h"

namespace detr_fast {
namespace {

constexpr int64_t kChannels = 3, kLevels = 256;

struct Image {
  const uint8_t* pixels;
  int64_t height, width;
  bool flipped;
};

// The image of a row of the layout, once its numbers are known to lie within the buffer and the batch.
Image checked_image(const PackedImages& images, int64_t index, int64_t height, int64_t width) {
  const int64_t* row = images.layout + 4 * index;
  const int64_t begin = row[0], rows = row[1], columns = row[2], flipped = row[3];
  const std::string name = "image " + std::to_string(index);
  if (rows < 0 || columns < 0 || rows > height || columns > width) {
    throw std::invalid_argument(name + " of " + std::to_string(rows) + "x" + std::to_string(columns) +
                                " does not fit into a size of " + std::to_string(height) + "x" + std::to_string(width));
  }
  if (begin < 0 || begin > images.num_bytes || kChannels * rows * columns > images.num_bytes - begin) {
    throw std::invalid_argument(name + " of " + std::to_string(rows) + "x" + std::to_string(columns) + " at byte " +
                                std::to_string(begin) + " leaves the buffer of " + std::to_string(images.num_bytes) +
                                " bytes");
  }
  if (flipped != 0 && flipped != 1) {
    throw std::invalid_argument(name + ": whether it is mirrored must be 0 or 1, got " + std::to_string(flipped));
  }
  return {images.pixels + begin, rows, columns, flipped == 1};
}

// A row of pixels; neighbors are `step` numbers apart in memory, and channels `channel_step`.
template <int64_t kStep, typename Word>
void write_row(const uint8_t* pixels, int64_t width, bool flipped, const Word* table, int64_t channel_step,
               Word* first) {
  const int64_t direction = flipped ? -kChannels : kChannels;
  if (flipped) pixels += kChannels * (width - 1);
  Word *second = first + channel_step, *third = second + channel_step;
  for (int64_t x = 0; x < width; ++x, pixels += direction) {
    first[x * kStep] = table[pixels[0]];
    second[x * kStep] = table[kLevels + pixels[1]];
    third[x * kStep] = table[2 * kLevels + pixels[2]];
  }
}

}  // namespace

template <typename Word>
void normalize_and_pad(const PackedImages& images, const Word* table, int64_t height, int64_t width, bool channels_last,
                       int num_threads, Word* batch, bool* mask) {
  for (int64_t index = 0; index < images.count; ++index) checked_image(images, index, height, width);
  const auto write = [&](int64_t task, Checkpoint&) {
    const int64_t index = task / height, y = task % height;
    const Image image = checked_image(images, index, height, width);
    const int64_t valid = y < image.height ? image.width : 0;
    const uint8_t* pixels = image.pixels + kChannels * image.width * y;
    if (channels_last) {
      Word* row = batch + kChannels * width * task;
      if (valid > 0) write_row<kChannels>(pixels, valid, image.flipped, table, 1, row);
      std::fill(row + kChannels * valid, row + kChannels * width, Word(0));
    } else {
      const int64_t plane = height * width;
      Word* row = batch + kChannels * plane * index + width * y;
      if (valid > 0) write_row<1>(pixels, valid, image.flipped, table, plane, row);
      for (int64_t c = 0; c < kChannels; ++c) std::fill(row + c * plane + valid, row + c * plane + width, Word(0));
    }
    bool* padded = mask + width * task;
    std::fill(padded, padded + valid, false);
    std::fill(padded + valid, padded + width, true);
  };
  parallel_for(images.count * height, num_threads, [] {}, write);
}

template void normalize_and_pad(const PackedImages&, const int16_t*, int64_t, int64_t, bool, int, int16_t*, bool*);
template void normalize_and_pad(const PackedImages&, const int32_t*, int64_t, int64_t, bool, int, int32_t*, bool*);
template void normalize_and_pad(const PackedImages&, const int64_t*, int64_t, int64_t, bool, int, int64_t*, bool*);

}  // namespace detr_fast

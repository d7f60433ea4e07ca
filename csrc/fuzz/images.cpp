#include <cstdint>
#include <limits>
#include <stdexcept>
#include <utility>

#include "fuzz/cases.h"
#include "normalize_and_pad.h"

namespace detr_fast {
namespace {

constexpr int64_t kChannels = 3, kLevels = 256;

// A batch of images that fill the buffer.
struct Images {
  int64_t count, height, width;
  Exact<int64_t> layout;
  Exact<uint8_t> pixels;
  Exact<int32_t> table, batch;
  Exact<bool> mask;

  PackedImages packed() { return {pixels.data(), pixels.size(), layout.data(), count}; }

  void run(bool channels_last, int num_threads) {
    normalize_and_pad(packed(), table.data(), height, width, channels_last, num_threads, batch.data(), mask.data());
  }
};

Images random_images(Bytes& bytes) {
  const int64_t count = 1 + bytes.below(4), height = 1 + bytes.below(9), width = 1 + bytes.below(40);
  Exact<int64_t> layout(4 * count);
  int64_t size = 0;
  for (int64_t image = 0; image < count; ++image) {
    int64_t* row = layout.data() + 4 * image;
    row[0] = size, row[1] = bytes.below(height + 1), row[2] = bytes.below(width + 1), row[3] = bytes.below(2);
    size += kChannels * row[1] * row[2];
  }
  const int64_t numbers = count * height * width;
  Images images = {count,
                   height,
                   width,
                   std::move(layout),
                   Exact<uint8_t>(size),
                   Exact<int32_t>(kChannels * kLevels),
                   Exact<int32_t>(kChannels * numbers),
                   Exact<bool>(numbers)};
  for (uint8_t& pixel : images.pixels) pixel = bytes.next();
  for (int64_t k = 0; k < images.table.size(); ++k) images.table[k] = static_cast<int32_t>(k + 1);
  for (int32_t& number : images.batch) number = -1;
  return images;
}

void check_values(Bytes& bytes) {
  Images images = random_images(bytes);
  const bool channels_last = bytes.below(2);
  images.run(channels_last, 1 + static_cast<int>(bytes.below(3)));
  for (int64_t k = 0; k < images.mask.size(); ++k) {
    const int64_t image = k / (images.height * images.width), y = k / images.width % images.height;
    const int64_t x = k % images.width, *row = images.layout.data() + 4 * image;
    const bool padded = y >= row[1] || x >= row[2];
    require(images.mask[k] == padded, "padding is masked");
    for (int64_t c = 0; c < kChannels; ++c) {
      const int64_t plane = ((image * kChannels + c) * images.height + y) * images.width + x;
      const int64_t source = row[0] + kChannels * (y * row[2] + (row[3] ? row[2] - 1 - x : x)) + c;
      const int32_t expected = padded ? 0 : images.table[kLevels * c + images.pixels[source]];
      require(images.batch[channels_last ? kChannels * k + c : plane] == expected, "pixels are looked up");
    }
  }
}

// A number of the layout that leads out of the buffer or the batch is refused.
void check_layout(Bytes& bytes) {
  Images images = random_images(bytes);
  constexpr int64_t kExtremes[] = {std::numeric_limits<int64_t>::min(), -1, int64_t{1} << 32,
                                   std::numeric_limits<int64_t>::max()};
  images.layout[bytes.below(images.layout.size())] = kExtremes[bytes.below(4)];
  bool refused = false;
  try {
    images.run(bytes.below(2), 1);
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  require(refused, "a layout that does not fit is refused");
  for (const int32_t number : images.batch) require(number == -1, "nothing is written before all is checked");
}

}  // namespace

void check_images(Bytes& bytes) {
  if (bytes.next() % 3) {
    check_values(bytes);
  } else {
    check_layout(bytes);
  }
}

}  // namespace detr_fast

#include "normalize_and_pad.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "bindings/arrays.h"
#include "bindings/bindings.h"

namespace detr_fast {
namespace {

template <typename Word>
void write(const Array<uint8_t>& pixels, const Array<int64_t>& layout, const Array<Word>& table, bool channels_last,
           int num_threads, Array<Word> batch, Array<bool> mask) {
  if (pixels.ndim() != 1) throw py::value_error("pixels must be [N], got " + describe_shape(pixels));
  if (mask.ndim() != 3) throw py::value_error("mask must be [B,H,W], got " + describe_shape(mask));
  const py::ssize_t count = mask.shape(0), height = mask.shape(1), width = mask.shape(2);
  require_shape(layout, {count, 4}, "layout must be [B,4]");
  require_shape(table, {3, 256}, "table must be [3,256]");
  if (channels_last) {
    require_shape(batch, {count, height, width, 3}, "batch must be [B,H,W,3]");
  } else {
    require_shape(batch, {count, 3, height, width}, "batch must be [B,3,H,W]");
  }
  require_aligned(layout, "layout");
  require_aligned(table, "table");
  require_aligned(batch, "batch");
  const PackedImages images = {pixels.data(), pixels.shape(0), layout.data(), count};
  Word* to = batch.mutable_data();
  bool* to_mask = mask.mutable_data();
  py::gil_scoped_release unlocked;
  normalize_and_pad(images, table.data(), height, width, channels_last, num_threads, to, to_mask);
}

template <typename Word>
void define(py::module_& m) {
  m.def("normalize_and_pad", &write<Word>, py::arg("pixels").noconvert(), py::arg("layout").noconvert(),
        py::arg("table").noconvert(), py::arg("channels_last"), py::arg("num_threads"), py::arg("batch").noconvert(),
        py::arg("mask").noconvert());
}

const Binding binding([](py::module_& m) {
  define<int16_t>(m);
  define<int32_t>(m);
  define<int64_t>(m);
});

}  // namespace
}  // namespace detr_fast

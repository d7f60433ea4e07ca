from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

from detr_fast import ops
from detr_fast.ops import PackedImages
from tests.ops.inputs.normalize_and_pad import MEAN, STD, packed

STATISTICS = {"mean": MEAN, "std": STD}
SIZES = [(5, 7), (9, 4), (1, 1)]


@pytest.fixture
def images() -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randint(256, (*size, 3), generator=rng, dtype=torch.uint8) for size in SIZES]


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_agrees_with_the_image_processor_of_transformers(images, backend):
    module = pytest.importorskip("transformers.models.detr.image_processing_pil_detr")
    processor = module.DetrImageProcessorPil(do_resize=False)
    expected = processor([x.numpy() for x in images], return_tensors="pt", input_data_format="channels_last")
    batch, mask = ops.normalize_and_pad(PackedImages.from_list(images), **STATISTICS, backend=backend)
    assert torch.equal(~mask, expected["pixel_mask"].bool())
    torch.testing.assert_close(batch, expected["pixel_values"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mirrored_images_are_those_that_are_mirrored_before(images, backend, dtype):
    options = {**STATISTICS, "dtype": dtype, "backend": backend}
    flags = [True, False, True]
    mirrored = [x.flip(1) if flag else x for x, flag in zip(images, flags, strict=True)]
    marked = ops.normalize_and_pad(PackedImages.from_list(images, flags), **options)
    expected = ops.normalize_and_pad(PackedImages.from_list(mirrored), **options)
    assert all(torch.equal(actual, desired) for actual, desired in zip(marked, expected, strict=True))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_memory_format_changes_strides_only(images, backend):
    packed_images = PackedImages.from_list(images)
    plain, _ = ops.normalize_and_pad(packed_images, **STATISTICS, backend=backend)
    last, _ = ops.normalize_and_pad(packed_images, **STATISTICS, memory_format=torch.channels_last, backend=backend)
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


@pytest.mark.parametrize("threads", [1, 2])
def test_every_number_of_threads_gives_the_same(threads):
    rng = torch.Generator().manual_seed(1)
    images = packed(rng, [(200, 300), (150, 320)])
    expected = ops.normalize_and_pad(images, **STATISTICS, backend="reference")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = ops.normalize_and_pad(images, **STATISTICS, backend="cpp")
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(actual, desired) for actual, desired in zip(found, expected, strict=True))


def test_larger_sizes_hold_padding(images):
    batch, mask = ops.normalize_and_pad(PackedImages.from_list(images), (16, 32), **STATISTICS)
    assert batch.shape == (3, 3, 16, 32)
    assert not batch[mask[:, None].expand_as(batch)].any()
    assert (~mask).sum((1, 2)).tolist() == [height * width for height, width in SIZES]


def test_no_image():
    batch, mask = ops.normalize_and_pad(PackedImages.from_list([]), **STATISTICS)
    assert batch.shape == (0, 3, 0, 0)
    assert mask.shape == (0, 0, 0)


def test_nothing_is_read_back_from_a_device():
    with FakeTensorMode():
        pixels = torch.empty(3 * 36, dtype=torch.uint8, device="cuda")
        layout = torch.empty(1, 4, dtype=torch.int64, device="cuda")
        batch, mask = ops.normalize_and_pad(
            PackedImages(pixels, layout, [(4, 9)]), **STATISTICS, memory_format=torch.channels_last
        )
    assert batch.shape == (1, 3, 4, 9)
    assert batch.stride() == (108, 1, 27, 3)
    assert mask.shape == (1, 4, 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (8, 7)}, "images of up to 9x7 do not fit into a size of 8x7"),
        ({"size": (9, 6)}, "images of up to 9x7 do not fit into a size of 9x6"),
        ({"mean": (0.5,)}, "three numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "positive"),
        ({"std": (1.0, float("nan"), 1.0)}, "positive"),
        ({"dtype": torch.uint8}, "dtype must be"),
        ({"memory_format": torch.preserve_format}, "memory_format must be"),
    ],
)
def test_bad_options(images, options, message):
    with pytest.raises(ValueError, match=message):
        ops.normalize_and_pad(PackedImages.from_list(images), **{**STATISTICS, **options})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pixels": torch.zeros(12)}, r"uint8 \[N\]"),
        ({"pixels": torch.zeros(2, 6, dtype=torch.uint8)}, r"uint8 \[N\]"),
        ({"layout": torch.zeros(1, 3, dtype=torch.int64)}, r"layout must be int64 \[B,4\]"),
        ({"layout": torch.zeros(2, 4, dtype=torch.int64)}, "with B=1"),
        ({"layout": torch.zeros(1, 4, dtype=torch.int32)}, "layout must be int64"),
        ({"layout": torch.zeros(1, 4, dtype=torch.int64, device="meta")}, "layout is on meta"),
        ({"sizes": [(2, 0)]}, "at least one pixel"),
        ({"sizes": [(2**15, 2**15)]}, "less than"),
        ({"sizes": [(2, 3)]}, "the sizes need 18 bytes, but pixels has 12"),
    ],
)
def test_fields_that_do_not_fit(fields, message):
    fitting = {"pixels": torch.zeros(12, dtype=torch.uint8), "layout": torch.tensor([[0, 2, 2, 0]]), "sizes": [(2, 2)]}
    PackedImages(**fitting)
    with pytest.raises(ValueError, match=message):
        PackedImages(**{**fitting, **fields})


@pytest.mark.parametrize("image", [torch.zeros(2, 2), torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(4, 4, 3)])
def test_images_that_cannot_be_packed(image):
    with pytest.raises(ValueError, match=r"image 1 must be uint8 \[h,w,3\]"):
        PackedImages.from_list([torch.zeros(2, 2, 3, dtype=torch.uint8), image])


def test_flags_of_another_length(images):
    with pytest.raises(ValueError, match="flipped has 1 entries for 3 images"):
        PackedImages.from_list(images, [True])


def test_images_move_as_a_whole(images):
    moved = PackedImages.from_list(images, [True, False, False]).to("meta")
    assert (moved.pixels.device.type, moved.layout.device.type) == ("meta", "meta")
    assert moved.sizes == SIZES
    assert (moved.largest, len(moved)) == ((9, 7), 3)

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from detr_fast.data import Augmentation, Resize
from detr_fast.data.transforms import _resize_and_crop, clip_boxes


def _blank(width: int, height: int) -> tuple[Image.Image, torch.Tensor, torch.Tensor]:
    return Image.new("RGB", (width, height)), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)


def _image_of_positions(side: int) -> Image.Image:
    """An image whose red is the x and whose green the y coordinate of a pixel."""
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))


def test_presets() -> None:
    detr, mmdet = Augmentation.detr(), Augmentation.mmdet()
    assert detr.scales == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert (detr.max_size, detr.flip, detr.crop) == (1333, 0.5, 0.5)
    assert (detr.middle_scales, detr.crop_min, detr.crop_max) == ((400, 500, 600), 384, 600)
    assert (detr.middle_max_size, mmdet.middle_max_size) == (None, 1333)


def test_sizes_without_crop() -> None:
    augment = Augmentation(crop=0.0)
    rng = random.Random(0)
    image, boxes, labels = _blank(640, 480)
    sizes = {augment(image, boxes, labels, rng)[0].size for _ in range(150)}
    assert sizes == {(int(side * 640 / 480), side) for side in augment.scales}
    wide = {augment(*_blank(1000, 300), rng)[0].size for _ in range(10)}
    assert wide == {(1333, 400)}


def test_middle_limit_is_where_the_presets_differ() -> None:
    """An image of 100 x 1000 with an intermediate size of 400 becomes 400 x 4000, or 133 x 1330 limited to 1333."""
    for limit, expected in ((None, 384), (1333, 133)):
        augment = Augmentation(
            scales=(50,), max_size=None, flip=0.0, crop=1.0, middle_scales=(400,), middle_max_size=limit,
            crop_min=384, crop_max=384,
        )  # fmt: skip
        image, _, _ = augment(*_blank(100, 1000), random.Random(0))
        assert image.size == (50, int(50 * 384 / expected))


def test_crop_regions() -> None:
    """Sides are drawn from crop_min to crop_max, positions from the entire image."""
    augment = Augmentation(
        scales=(100,), max_size=None, flip=0.0, crop=1.0, middle_scales=(60,), crop_min=20, crop_max=40
    )
    image, rng = _image_of_positions(60), random.Random(0)
    regions = []
    for _ in range(800):
        cropped = np.asarray(augment(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), rng)[0]).astype(int)
        regions.append([*cropped[0, 0, :2], *(cropped[-1, -1, :2] + 1)])
    left, top, right, bottom = np.array(regions).T
    for side in (right - left, bottom - top):
        assert (side.min(), side.max()) == (20, 40)
        assert side.mean() == pytest.approx(30, abs=1)
    assert not np.array_equal(right - left, bottom - top)
    for low, high in ((left, right), (top, bottom)):
        assert (low.min(), high.max()) == (0, 60)


def test_crop_of_an_image_smaller_than_crop_min() -> None:
    augment = Augmentation(scales=(32,), flip=0.0, crop=1.0, middle_scales=(40,))
    assert augment(*_blank(80, 40), random.Random(0))[0].size == (64, 32)


@pytest.mark.parametrize(("name", "index"), [("flip", 0), ("crop", 1)])
def test_probabilities(name: str, index: int) -> None:
    augment = Augmentation(scales=(60,), middle_scales=(60,), crop_min=30, crop_max=30)
    image, rng = _image_of_positions(60), random.Random(1)
    flips, crops = [], []
    for _ in range(600):
        pixels = np.asarray(augment(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), rng)[0]).astype(int)
        flips.append(pixels[0, 0, 0] > pixels[0, -1, 0])
        crops.append(abs(pixels[0, 0, 0] - pixels[0, -1, 0]) < 40)
    assert np.mean((flips, crops)[index]) == pytest.approx(getattr(augment, name), abs=0.06)
    assert np.corrcoef(flips, crops)[0, 1] == pytest.approx(0, abs=0.12)


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("crop", [0.0, 1.0])
def test_boxes_follow_the_image(flip: float, crop: float) -> None:
    """The bright rectangles of an image are where its boxes are, and boxes are dropped with their pixels."""
    places = [(30, 20, 70, 50), (100, 60, 150, 110)]
    pixels = np.zeros((120, 160, 3), dtype=np.uint8)
    for channel, (left, top, right, bottom) in enumerate(places):
        pixels[top:bottom, left:right, channel] = 255
    image, boxes, labels = Image.fromarray(pixels), torch.tensor(places, dtype=torch.float32), torch.tensor([0, 1])
    augment = Augmentation(
        scales=(150, 200), max_size=260, flip=flip, crop=crop, middle_scales=(90, 140), crop_min=50, crop_max=90
    )
    found = 0
    for seed in range(25):
        moved, new_boxes, new_labels = augment(image, boxes, labels, random.Random(seed))
        for channel in (0, 1):
            kept = new_boxes[new_labels == channel]
            bright = np.argwhere(np.asarray(moved)[:, :, channel] > 127)
            if len(kept) == 0:
                assert len(bright) == 0
            elif (kept[0, 2:] - kept[0, :2]).min() > 15:  # slivers fade when they are resized
                top, left = bright.min(0)
                bottom, right = bright.max(0) + 1
                assert kept[0].tolist() == pytest.approx([left, top, right, bottom], abs=2.0)
                found += 1
        assert (new_boxes[:, 2:] > new_boxes[:, :2]).all()
        assert (new_boxes >= 0).all()
        assert (new_boxes <= torch.tensor([*moved.size, *moved.size]) + 1e-3).all()
    assert found >= 15


def test_flip_is_exact() -> None:
    image, boxes, labels = Image.new("RGB", (64, 64)), torch.tensor([[3.0, 5, 10, 20]]), torch.tensor([2])
    _, flipped, _ = Augmentation(scales=(64,), flip=1.0, crop=0.0)(image, boxes, labels, random.Random(0))
    assert flipped.tolist() == [[54, 5, 61, 20]]


def test_resize_draws_nothing() -> None:
    image, boxes, labels = Image.new("RGB", (640, 480)), torch.tensor([[64.0, 48, 320, 240]]), torch.tensor([1])
    rng = random.Random(0)
    state = rng.getstate()
    resized, new_boxes, new_labels = Resize()(image, boxes, labels, rng)
    assert resized.size == (1066, 800)
    assert new_boxes[0].tolist() == pytest.approx([106.6, 80, 533, 400])
    assert new_labels is labels
    assert rng.getstate() == state


def test_clip_boxes_drops_what_has_no_area() -> None:
    boxes = torch.tensor([[-5.0, 2, 5, 50], [-9, 0, 0, 5], [20, 0, 30, 5], [1, 1, 1, 4], [2, 2, 3, 3]])
    clipped, labels = clip_boxes(boxes, torch.arange(5), 20, 10)
    assert clipped.tolist() == [[0, 2, 5, 10], [2, 2, 3, 3]]
    assert labels.tolist() == [0, 4]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scales": ()}, "scales must contain"),
        ({"middle_scales": (400, 0)}, "middle_scales must contain"),
        ({"flip": 1.5}, "flip is a probability"),
        ({"crop": -0.1}, "crop is a probability"),
        ({"crop_min": 700}, "crop_min <= crop_max"),
    ],
)
def test_bad_settings(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**fields)


def test_long_thin_images_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of 20000 x 1 with an intermediate size of 600 would be 12000000 x 600."""
    sizes = []
    resize = Image.Image.resize

    def record(self: Image.Image, size: tuple[int, int], *args: object, **options: object) -> Image.Image:
        sizes.append(size)
        return resize(self, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", record)
    augment, rng = Augmentation(), random.Random(0)
    for shape in ((20000, 1), (1, 20000), (2000, 1)):
        for _ in range(5):
            augment(*_blank(*shape), rng)
    assert len(sizes) > 15
    assert max(width * height for width, height in sizes) <= 1333 * 800


def test_the_crop_is_that_of_the_resized_image() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (90, 130, 3)).astype(np.uint8))
    size, region = (520, 360), (100, 7, 484, 360)
    cropped, *_ = _resize_and_crop(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), size, region)
    expected = image.resize(size, Image.Resampling.BILINEAR).crop(region)
    assert np.abs(np.asarray(cropped).astype(int) - np.asarray(expected).astype(int)).max() <= 2


@pytest.mark.parametrize(
    "options",
    [
        {"max_size": 0},
        {"max_size": -5},
        {"middle_max_size": 0},
        {"scales": (10**9,)},
        {"scales": (1.5,)},
        {"scales": 3},
    ],
)
def test_lengths_out_of_range_are_refused_by_name(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"augmentation: {name} must"):
        Augmentation(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="resize: longest must be an integer from 1"):
        Resize(32, 0)

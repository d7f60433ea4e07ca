from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detr_fast.data import Augmentation, Labeled, Resize, transforms
from detr_fast.data.transforms import _resize_and_crop, clip_boxes
from detr_fast.images import read_image, resize_shape

NOTHING = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)  # boxes and labels


def _blank(width: int, height: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.zeros(height, width, 3, dtype=torch.uint8), *NOTHING


def _image_of_positions(side: int) -> torch.Tensor:
    """An image whose red is the x and whose green the y coordinate of a pixel."""
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    return torch.from_numpy(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))


def _size(image: torch.Tensor) -> tuple[int, int]:
    """The (width, height) of an image."""
    return image.shape[1], image.shape[0]


def _pixels(found: Labeled) -> np.ndarray:
    """The pixels of an image, mirrored where that is yet to be done."""
    return (found.image.flip(1) if found.flipped else found.image).numpy().astype(int)


def test_presets() -> None:
    detr, mmdet = Augmentation.detr(), Augmentation.mmdet3()
    assert detr.scales == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert (detr.max_size, detr.flip, detr.crop) == (1333, 0.5, 0.5)
    assert (detr.middle_scales, detr.crop_min, detr.crop_max) == ((400, 500, 600), 384, 600)
    assert (detr.middle_max_size, mmdet.middle_max_size) == (None, 1333)


def test_sizes_without_crop() -> None:
    augment = Augmentation(crop=0.0)
    rng = random.Random(0)
    image, boxes, labels = _blank(640, 480)
    sizes = {_size(augment(image, boxes, labels, rng).image) for _ in range(150)}
    assert sizes == {(int(side * 640 / 480), side) for side in augment.scales}
    wide = {_size(augment(*_blank(1000, 300), rng).image) for _ in range(10)}
    assert wide == {(1333, 400)}


def test_middle_limit_is_where_the_presets_differ() -> None:
    """An image of 100 x 1000 with an intermediate size of 400 becomes 400 x 4000, or 133 x 1330 limited to 1333."""
    for limit, expected in ((None, 384), (1333, 133)):
        augment = Augmentation(
            scales=(50,), max_size=None, flip=0.0, crop=1.0, middle_scales=(400,), middle_max_size=limit,
            crop_min=384, crop_max=384,
        )  # fmt: skip
        image = augment(*_blank(100, 1000), random.Random(0)).image
        assert _size(image) == (50, int(50 * 384 / expected))


def test_crop_regions() -> None:
    """Sides are drawn from crop_min to crop_max, positions from the entire image."""
    augment = Augmentation(
        scales=(100,), max_size=None, flip=0.0, crop=1.0, middle_scales=(60,), crop_min=20, crop_max=40
    )
    image, rng = _image_of_positions(60), random.Random(0)
    regions = []
    for _ in range(800):
        cropped = _pixels(augment(image, *NOTHING, rng))
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
    assert _size(augment(*_blank(80, 40), random.Random(0)).image) == (64, 32)


@pytest.mark.parametrize(("name", "index"), [("flip", 0), ("crop", 1)])
def test_probabilities(name: str, index: int) -> None:
    augment = Augmentation(scales=(60,), middle_scales=(60,), crop_min=30, crop_max=30)
    image, rng = _image_of_positions(60), random.Random(1)
    flips, crops = [], []
    for _ in range(600):
        pixels = _pixels(augment(image, *NOTHING, rng))
        flips.append(pixels[0, 0, 0] > pixels[0, -1, 0])
        crops.append(abs(pixels[0, 0, 0] - pixels[0, -1, 0]) < 40)
    assert np.mean((flips, crops)[index]) == pytest.approx(getattr(augment, name), abs=0.06)
    assert np.corrcoef(flips, crops)[0, 1] == pytest.approx(0, abs=0.12)


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize(("crop", "single_resize"), [(0.0, False), (1.0, False), (1.0, True)])
def test_boxes_follow_the_image(flip: float, crop: float, single_resize: bool) -> None:
    """The bright rectangles of an image are where its boxes are, and boxes are dropped with their pixels."""
    places = [(30, 20, 70, 50), (100, 60, 150, 110)]
    pixels = np.zeros((120, 160, 3), dtype=np.uint8)
    for channel, (left, top, right, bottom) in enumerate(places):
        pixels[top:bottom, left:right, channel] = 255
    image, boxes, labels = torch.from_numpy(pixels), torch.tensor(places, dtype=torch.float32), torch.tensor([0, 1])
    augment = Augmentation(
        scales=(150, 200),
        max_size=260,
        flip=flip,
        crop=crop,
        middle_scales=(90, 140),
        crop_min=50,
        crop_max=90,
        single_resize=single_resize,
    )
    found = 0
    for seed in range(25):
        moved = augment(image, boxes, labels, random.Random(seed))
        new_boxes, new_labels = moved.boxes, moved.labels
        for channel in (0, 1):
            kept = new_boxes[new_labels == channel]
            bright = np.argwhere(_pixels(moved)[:, :, channel] > 127)
            if len(kept) == 0:
                assert len(bright) == 0
            elif (kept[0, 2:] - kept[0, :2]).min() > 15:  # slivers fade when they are resized
                top, left = bright.min(0)
                bottom, right = bright.max(0) + 1
                assert kept[0].tolist() == pytest.approx([left, top, right, bottom], abs=2.0)
                found += 1
        assert (new_boxes[:, 2:] > new_boxes[:, :2]).all()
        assert (new_boxes >= 0).all()
        assert (new_boxes <= torch.tensor(_size(moved.image) * 2) + 1e-3).all()
    assert found >= 15


def test_flip_is_exact() -> None:
    image, boxes, labels = _image_of_positions(64), torch.tensor([[3.0, 5, 10, 20]]), torch.tensor([2])
    mirrored = Augmentation(scales=(64,), flip=1.0, crop=0.0)(image, boxes, labels, random.Random(0))
    assert mirrored.boxes.tolist() == [[54, 5, 61, 20]]
    assert mirrored.flipped
    assert np.array_equal(_pixels(mirrored), image.flip(1))


def test_resize_draws_nothing() -> None:
    image, boxes, labels = _blank(640, 480)[0], torch.tensor([[64.0, 48, 320, 240]]), torch.tensor([1])
    rng = random.Random(0)
    state = rng.getstate()
    resized, new_boxes, new_labels, flipped = Resize()(image, boxes, labels, rng)
    assert not flipped
    assert _size(resized) == (1066, 800)
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


@pytest.mark.parametrize("single_resize", [False, True])
def test_long_thin_images_take_little_memory(monkeypatch: pytest.MonkeyPatch, single_resize: bool) -> None:
    """An image of 20000 x 1 with an intermediate size of 600 would be 12000000 x 600."""
    sizes = []
    resize, resize_pixels = Image.Image.resize, transforms.resize_pixels

    def record(self: Image.Image, size: tuple[int, int], *args: object, **options: object) -> Image.Image:
        sizes.append(size)
        return resize(self, size, *args, **options)

    def record_pixels(image: torch.Tensor, *size: int) -> torch.Tensor:
        sizes.append(size)
        return resize_pixels(image, *size)

    monkeypatch.setattr(Image.Image, "resize", record)
    monkeypatch.setattr(transforms, "resize_pixels", record_pixels)
    augment, rng = Augmentation(single_resize=single_resize), random.Random(0)
    for shape in ((20000, 1), (1, 20000), (2000, 1)):
        for _ in range(5):
            augment(*_blank(*shape), rng)
    assert len(sizes) >= 15
    assert max(width * height for width, height in sizes) <= 1333 * 800


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("region", [(100, 7, 484, 360), (10, 200, 294, 300)])
def test_the_crop_is_that_of_the_resized_image(region: tuple[int, int, int, int], flipped: bool) -> None:
    """Of the larger region the complete image is resized, of the smaller one the region alone."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (90, 130, 3)).astype(np.uint8)
    size = (520, 360)
    cropped, *_ = _resize_and_crop(torch.from_numpy(image), *NOTHING, size, region, flipped)
    mirrored = Image.fromarray(image[:, ::-1] if flipped else image)
    expected = np.asarray(mirrored.resize(size, Image.Resampling.BILINEAR).crop(region)).astype(int)
    assert np.abs(_pixels(Labeled(cropped, *NOTHING, flipped)) - expected).max() <= 2


def _augment_with_pillow(augment: Augmentation, image: Image.Image, rng: random.Random) -> Image.Image:
    """The augmentation as facebookresearch/detr computes it: every step as an image of its own."""
    if rng.random() < augment.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() >= 1 - augment.crop:
        size = resize_shape(*image.size, rng.choice(augment.middle_scales), augment.middle_max_size)
        image = image.resize(size, Image.Resampling.BILINEAR)
        width, height = (rng.randint(min(augment.crop_min, x), min(augment.crop_max, x)) for x in size)
        top = rng.randint(0, size[1] - height)
        left = rng.randint(0, size[0] - width)
        image = image.crop((left, top, left + width, top + height))
    size = resize_shape(*image.size, rng.choice(augment.scales), augment.max_size)
    return image.resize(size, Image.Resampling.BILINEAR)


@pytest.mark.parametrize("name", ["grace_hopper.jpg", "china.jpg", "flower.jpg"])
def test_pixels_of_photographs_are_those_of_pillow(name: str) -> None:
    """To one level of 255, except for one number in a million, where the roundings of two resizes add up."""
    if name == "grace_hopper.jpg":
        folder = Path(pytest.importorskip("matplotlib").get_data_path()) / "sample_data"
    else:
        folder = Path(pytest.importorskip("sklearn.datasets").__file__).parent / "images"
    photo, augment = read_image(folder / name), Augmentation()
    image, levels = torch.from_numpy(np.array(photo)), np.zeros(256)
    for seed in range(8):
        pixels = _pixels(augment(image, *NOTHING, random.Random(seed)))
        expected = np.asarray(_augment_with_pillow(augment, photo, random.Random(seed))).astype(int)
        assert pixels.shape == expected.shape
        levels += np.bincount(np.abs(pixels - expected).ravel(), minlength=256)
    assert levels[1] <= 0.01 * levels.sum()
    assert levels[2] <= 1e-6 * levels.sum()
    assert levels[3:].sum() == 0


def test_a_single_resize_gives_the_same_sizes_and_nearly_the_same_boxes() -> None:
    twice, once = Augmentation(crop=1.0), Augmentation(crop=1.0, single_resize=True)
    image, labels = torch.zeros(480, 640, 3, dtype=torch.uint8), torch.tensor([0])
    boxes = torch.tensor([[250.0, 150, 400, 330]])
    compared = 0
    for seed in range(40):
        first, second = (x(image, boxes, labels, random.Random(seed)) for x in (twice, once))
        assert (first.image.shape, first.flipped) == (second.image.shape, second.flipped)
        if len(first.boxes) and len(second.boxes):
            torch.testing.assert_close(first.boxes, second.boxes, rtol=0, atol=2.0)
            compared += 1
    assert compared > 30


@pytest.mark.parametrize("options", [{}, {"crop": 0.0}, {"single_resize": True}], ids=str)
@pytest.mark.parametrize("size", [(4000, 3000), (900, 2400), (3000, 200), (100, 80)])
def test_no_resize_needs_more_than_the_fewest_pixels(options: dict, size: tuple[int, int]) -> None:
    augment = Augmentation(**options, reduced_decode=True)
    fewest = augment.fewest_pixels(*size)
    assert all(x <= y for x, y in zip(fewest, size, strict=True))
    assert Augmentation(**options).fewest_pixels(*size) == size
    shapes = [resize_shape(*size, shorter, augment.max_size) for shorter in augment.scales]
    if augment.crop:
        shapes += [resize_shape(*size, shorter, augment.middle_max_size) for shorter in augment.middle_scales]
    assert all(x >= min(y, z) for shape in shapes for x, y, z in zip(fewest, shape, size, strict=True))
    if size == (4000, 3000):
        assert fewest == ((1667, 1250) if options == {"single_resize": True} else (1066, 800))


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

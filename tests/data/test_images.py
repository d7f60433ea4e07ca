from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from detr_fast import images
from detr_fast.images import (
    ImageError,
    decode_image,
    fit_shape,
    pad_images,
    read_image,
    resize_pixels,
    resize_shape,
    to_tensor,
)

matplotlib = pytest.importorskip("matplotlib")  # which comes with a photograph
PHOTO = Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg"


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(path)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (5, 4))
    assert (np.asarray(image) == 255).all()


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert np.asarray(read_image(tmp_path / "deep.png"))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize("white", [255, 4095, 65535])
def test_fewer_than_sixteen_bits_are_scaled(tmp_path: Path, white: int) -> None:
    values = np.array([[0, white // 2, white]], dtype=np.uint16)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(values).save(tmp_path / name)
        decoded = decode_image(tmp_path / name)
        assert decoded.pixels[0, :, 0].tolist() == [0, 127, 255]
        assert decoded.white == white
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "deep.tif")
    assert np.asarray(read_image(tmp_path / "deep.tif"))[0, :, 0].tolist() == [0, 127, 255]


def test_floating_point_values_are_scaled_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "float.tif"
    for values, expected in (([0, 0.5, 1], [0, 128, 255]), ([0, 1.5, 255], [0, 2, 255])):
        Image.fromarray(np.array([values], dtype=np.float32)).save(path)
        decoded = decode_image(path)
        assert decoded.pixels[0, :, 0].tolist() == expected
        assert decoded.white == values[-1]
    for values in ([0, 256], [-1, 1], [0, float("nan")], [float("nan"), 1], [0, float("inf")]):
        Image.fromarray(np.array([values], dtype=np.float32)).save(path)
        with pytest.raises(ImageError, match=r"float\.tif: .* must be within \[0,1\] or \[0,255\], got"):
            read_image(path)
    Image.fromarray(np.array([[0, 70000]], dtype=np.int32)).save(path)
    with pytest.raises(ImageError, match="integers must have at most 16 bits, got 0 to 70000"):
        read_image(path)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_images_are_turned_upright_as_pillow_does(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(np.asarray(read_image(path)), expected)
    if suffix != "tif":  # which Pillow turns when it decodes it
        assert decode_image(path).size == (32, 24)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_image(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ImageError, match=rf"cut\.{suffix}: cannot read this image: .*truncated"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_not_an_image(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"x\.png: cannot read this image"):
        read_image(tmp_path / "x.png")


def test_missing_image(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.png: cannot read this image: there is no such file"):
        read_image(tmp_path / "none.png")


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="bomb"):
        read_image(tmp_path / "bomb.png")


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The decoder that each file was read by."""
    simplejpeg = pytest.importorskip("simplejpeg")
    decode, read, used = simplejpeg.decode_jpeg, images._decode_with_pillow, []

    def decode_jpeg(*arguments: Any, **options: Any) -> np.ndarray:
        pixels = decode(*arguments, **options)
        used.append("simplejpeg")
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", decode_jpeg)
    monkeypatch.setattr(images, "_decode_with_pillow", lambda path: used.append("Pillow") or read(path))
    return used


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("options", [{"quality": 90}, {"quality": 30, "progressive": True}], ids=str)
def test_pixels_are_those_of_pillow(tmp_path: Path, decodes: list[str], options: dict, subsampling: str) -> None:
    with Image.open(PHOTO) as photo:
        photo.crop((3, 5, 500, 598)).save(tmp_path / "photo.jpg", subsampling=subsampling, **options)
    with Image.open(tmp_path / "photo.jpg") as photo:
        assert np.array_equal(decode_image(tmp_path / "photo.jpg").pixels, photo.convert("RGB"))
    assert decodes == ["simplejpeg"]


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_jpeg_files_are_read_by_pillow(tmp_path: Path, decodes: list[str], mode: str) -> None:
    with Image.open(PHOTO) as photo:
        photo.convert(mode).save(tmp_path / "photo.jpg")
    with Image.open(tmp_path / "photo.jpg") as photo:
        assert np.array_equal(decode_image(tmp_path / "photo.jpg").pixels, photo.convert("RGB"))
    assert decodes == ["Pillow"]


def test_turned_jpeg_files_are_read_by_pillow(tmp_path: Path, decodes: list[str]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "turned.jpg", exif=exif)
    decode_image(tmp_path / "turned.jpg")
    assert decodes == ["Pillow"]


def test_pixels_without_simplejpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = decode_image(PHOTO).pixels
    monkeypatch.setattr(images, "_has_simplejpeg", lambda: False)
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert torch.equal(decode_image(PHOTO).pixels, expected)


def test_faulty_jpeg_files_are_refused_by_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = PHOTO.read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[:-5000])
    (tmp_path / "begin.jpg").write_bytes(data[:100])
    for name, message in (("cut.jpg", "truncated"), ("begin.jpg", "cannot"), ("none.jpg", "there is no such file")):
        with pytest.raises(ImageError, match=message):
            decode_image(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="bomb"):
        decode_image(PHOTO)


@pytest.mark.parametrize(
    ("fewest", "expected"),
    [((512, 600), (512, 600)), ((257, 300), (512, 600)), ((256, 300), (256, 300)), ((100, 200), (192, 225))],
)
def test_reduced_pixels(fewest: tuple[int, int], expected: tuple[int, int]) -> None:
    """Files are reduced by eighths, to a half or less, and have as many pixels as are needed."""
    pytest.importorskip("simplejpeg")
    pixels, size, _, _ = decode_image(PHOTO, lambda width, height: fewest)
    assert size == (512, 600)
    assert pixels.shape == (expected[1], expected[0], 3)
    photo = read_image(PHOTO).resize(expected, Image.Resampling.BOX)
    assert np.abs(pixels.numpy() - np.asarray(photo).astype(int)).mean() < 4


def test_only_jpeg_files_are_reduced(tmp_path: Path) -> None:
    Image.new("RGB", (64, 32)).save(tmp_path / "x.png")
    pixels, size, _, _ = decode_image(tmp_path / "x.png", lambda width, height: (1, 1))
    assert (pixels.shape, size) == ((32, 64, 3), (64, 32))


@pytest.mark.parametrize("size", [(853, 640), (683, 800), (512, 600), (300, 351), (40, 900), (900, 40), (1, 1), (5, 1)])
def test_resized_pixels_are_those_of_pillow(size: tuple[int, int]) -> None:
    photo = read_image(PHOTO)
    resized = resize_pixels(torch.from_numpy(np.array(photo)), *size)
    assert (resized.shape, resized.dtype) == ((size[1], size[0], 3), torch.uint8)
    expected = np.asarray(photo.resize(size, Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(resized.numpy() - expected).max() <= 1


@pytest.mark.parametrize(
    ("size", "shorter", "longest", "expected"),
    [
        ((640, 480), 800, 1333, (1066, 800)),
        ((480, 640), 800, 1333, (800, 1066)),
        ((640, 426), 800, 1333, (1201, 800)),  # 1201.9 rounded down
        ((1000, 300), 800, 1333, (1333, 400)),  # limited: 399.9 rounded to the nearest
        ((2000, 1000), 800, 1333, (1332, 666)),  # limited: 666.5 rounded to even
        ((1066, 800), 800, 1333, (1066, 800)),
        ((500, 375), 600, None, (800, 600)),
        ((2000, 200), 400, None, (4000, 400)),
        ((64, 64), 64, None, (64, 64)),
        ((10000, 1), 800, 1333, (1333, 1)),
        ((1, 10000), 800, 1333, (1, 1333)),
    ],
)
def test_resize_shape(size: tuple[int, int], shorter: int, longest: int | None, expected: tuple[int, int]) -> None:
    assert resize_shape(*size, shorter, longest) == expected


def test_to_tensor_normalises() -> None:
    image = Image.new("RGB", (3, 2), (0, 128, 255))
    tensor = to_tensor(image)
    assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == ((3, 2, 3), torch.float32, True)
    expected = torch.tensor([-0.485 / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    torch.testing.assert_close(tensor, expected.view(3, 1, 1).expand(3, 2, 3))


def test_padding_and_mask() -> None:
    images = [torch.full((3, 2, 5), 1.0), torch.full((3, 4, 3), 2.0)]
    batch, mask = pad_images(images)
    assert batch.shape == (2, 3, 4, 5)
    assert mask.shape == (2, 4, 5)
    for row, (image, (height, width)) in enumerate(zip(images, [(2, 5), (4, 3)], strict=True)):
        assert torch.equal(batch[row, :, :height, :width], image)
        assert not mask[row, :height, :width].any()
        assert int((~mask[row]).sum()) == height * width
        assert (batch[row][:, mask[row]] == 0).all()


def test_padding_of_nothing() -> None:
    batch, mask = pad_images([])
    assert (batch.shape, mask.shape, mask.dtype) == ((0, 3, 0, 0), (0, 0, 0), torch.bool)


@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [
        ((60, 80), (64, 96), (60, 80)),
        ((64, 96), (64, 96), (64, 96)),
        ((96, 64), (64, 96), (64, 42)),
        ((64, 97), (64, 96), (63, 96)),
        ((100, 100), (64, 96), (64, 64)),
        ((1, 500), (64, 96), (1, 96)),
        ((500, 1), (64, 96), (64, 1)),
    ],
)
def test_fit_shape(size: tuple[int, int], limit: tuple[int, int], expected: tuple[int, int]) -> None:
    assert fit_shape(size, limit) == expected

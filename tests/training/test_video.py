from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from detr_fast.images import VideoError
from detr_fast.training import predict_files

av = pytest.importorskip("av")

from detr_fast.training.video import Frame, VideoWriter, read_frames  # noqa: E402

SHADES = [0, 60, 120, 180, 240]


def write_video(path: Path, size: tuple[int, int] = (64, 48), rate: Any = 25, times: Any = None) -> Path:
    """A lossless video, each of whose frames has a shade of gray; the upper half is white."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1" if path.suffix == ".mkv" else "libx264", rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        if path.suffix != ".mkv":
            stream.options = {"qp": "0"}
        for k, shade in enumerate(SHADES):
            pixels = np.full((size[1], size[0], 3), shade, np.uint8)
            pixels[: size[1] // 2] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = (k if times is None else times[k]), Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def rotate(path: Path) -> None:
    """Set the matrix in the header of the track, so that players turn the video by 90 degrees clockwise."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    identity = [0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000]
    assert content[matrix : matrix + 36] == b"".join(value.to_bytes(4, "big") for value in identity)
    turned = [0, 0x10000, 0, -0x10000, 0, 0, 48 << 16, 0, 0x40000000]
    content[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in turned)
    path.write_bytes(content)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A saved model that has detections in each image."""
    from detr_fast import DETR

    torch.manual_seed(0)
    model = DETR(
        num_classes=2,
        backbone="resnet_tiny",
        hidden_dim=16,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        dim_feedforward=16,
        num_queries=3,
        categories=[{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        image_size=32,
        max_image_size=64,
    )
    nn.init.normal_(model.class_embed.weight, std=1)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_frames_and_times_are_those_of_the_file(tmp_path):
    frames = list(read_frames(write_video(tmp_path / "a.mkv", times=[0, 1, 2, 7, 8])))
    assert [frame.time for frame in frames] == pytest.approx([0, 0.04, 0.08, 0.28, 0.32], abs=1e-3)
    for frame, shade in zip(frames, SHADES, strict=True):
        pixels = np.asarray(frame.image).astype(int)
        assert abs(pixels[:24] - 255).max() <= 2
        assert abs(pixels[24:] - shade).max() <= 2


def test_a_turned_video_is_read_upright(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    rotate(path)
    image = next(read_frames(path)).image
    assert image.size == (48, 64)
    pixels = np.asarray(image).astype(int)
    assert pixels[:, 26:].min() > 240  # the upper half is on the right after a turn clockwise
    assert pixels[:, :22].max() < 15


def test_frames_are_written_at_their_times(tmp_path):
    times = [0, 0.04, 0.08, 0.28, 0.29]
    with VideoWriter(tmp_path / "out.mp4") as writer:
        for shade, time in zip(SHADES, times, strict=True):
            writer.write(Frame(Image.new("RGB", (41, 31), (shade,) * 3), time))
        writer.write(Frame(Image.new("RGB", (90, 70)), 0.29))  # another size, and no later
    found = list(read_frames(tmp_path / "out.mp4"))
    assert [frame.time for frame in found] == pytest.approx([*times, 0.29], abs=1e-3)
    assert found[-1].time > found[-2].time
    assert {frame.image.size for frame in found} == {(42, 32)}
    for frame, shade in zip(found, SHADES, strict=False):
        assert np.asarray(frame.image)[5:25, 5:35].mean() == pytest.approx(shade, abs=6)


def test_a_video_is_predicted_frame_by_frame(model, tmp_path):
    from detr_fast import DETR

    path = write_video(tmp_path / "clip.mkv")
    output = tmp_path / "out"
    Image.new("RGB", (40, 30)).save(tmp_path / "image.png")
    assert predict_files(model, [path, tmp_path / "image.png"], output, threshold=0.3, device="cpu") == []
    video, image = json.loads((output / "predictions.json").read_text())
    assert (video["file"], video["drawing"]) == (str(path), "00000-clip.mp4")
    assert image["drawing"] == "00001-image.png"
    assert [frame["time"] for frame in video["frames"]] == pytest.approx([0, 0.04, 0.08, 0.12, 0.16], abs=1e-3)
    detector = DETR.from_pretrained(model)
    for record, frame in zip(video["frames"], read_frames(path), strict=True):
        (expected,) = detector.predict(frame.image, threshold=0.3)
        assert len(expected["scores"]) > 0
        assert [found["name"] for found in record["detections"]] == expected["names"]
        boxes = torch.tensor([found["box"] for found in record["detections"]])
        torch.testing.assert_close(boxes, expected["boxes"], rtol=0, atol=1e-3)
    drawn = list(read_frames(output / "00000-clip.mp4"))
    assert [frame.image.size for frame in drawn] == [(320, 240)] * 5  # five times as large, for the captions
    colors = np.asarray(drawn[0].image).astype(int)
    assert (colors.max(-1) - colors.min(-1)).max() > 100


def test_a_damaged_video_is_a_failure_and_its_first_frames_remain(model, tmp_path):
    path = write_video(tmp_path / "cut.mkv", size=(640, 480))
    content = path.read_bytes()
    (tmp_path / "none.mp4").write_bytes(b"no video")
    (tmp_path / "empty.avi").write_bytes(b"")
    failures = predict_files(model, [tmp_path / "none.mp4", tmp_path / "empty.avi"], tmp_path / "out", device="cpu")
    assert [failure.split(": ")[0] for failure in failures] == [str(tmp_path / "none.mp4"), str(tmp_path / "empty.avi")]
    assert all("cannot read this video" in failure for failure in failures)
    assert json.loads((tmp_path / "out/predictions.json").read_text()) == []
    assert not list((tmp_path / "out").glob("*.mp4"))
    path.write_bytes(content[: len(content) * 2 // 3])
    predict_files(model, [path], tmp_path / "out", device="cpu")
    (record,) = json.loads((tmp_path / "out/predictions.json").read_text())
    assert 0 < len(record["frames"]) < len(SHADES)
    assert len(list(read_frames(tmp_path / "out/00000-cut.mp4"))) == len(record["frames"])


def test_frames_before_an_error_are_kept():
    from detr_fast.training.prediction import _batches

    def frames():
        yield from range(6)
        raise VideoError("cut")

    batches = _batches(frames())
    assert [next(batches), next(batches)] == [[0, 1, 2, 3], [4, 5]]
    with pytest.raises(VideoError, match="cut"):
        next(batches)


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    frame = Frame(Image.new("RGB", (40, 30)), 0.0)
    with pytest.raises(VideoError, match="cannot write this video"), VideoWriter(tmp_path / "none/out.mp4") as writer:
        writer.write(frame)

"""Reading and writing video files, frame by frame."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, cast

import av
from av.container import OutputContainer
from PIL import Image

from detr_fast.images import VideoError

# What turns a frame as players display it, by the degrees of its rotation counterclockwise.
_TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}
_CODEC = "libx264" if "libx264" in av.codecs_available else "mpeg4"
_TIME_BASE = Fraction(1, 60000)  # seconds: 24, 25, 30, 50, 60 and the rates of NTSC are exact, within MPEG-4's 16 bits


class Frame(NamedTuple):
    """A frame of a video.

    Attributes:
        image: The frame as players display it, RGB.
        time: Time in seconds since the beginning of the video.
    """

    image: Image.Image
    time: float


def read_frames(path: Path) -> Iterator[Frame]:
    """Decode the first video stream of a file; one frame at a time is held in memory.

    Args:
        path: The video file.

    Raises:
        VideoError: The file cannot be read, or not further, or has no video.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError(f"{path}: has no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate = float(stream.average_rate or stream.guessed_rate or 25)
            for number, frame in enumerate(container.decode(stream)):
                image = frame.to_image()
                turn = _TURNS.get(frame.rotation % 360)
                time = frame.time if frame.time is not None else number / rate
                yield Frame(image if turn is None else image.transpose(turn), time)
    except av.FFmpegError as error:
        raise VideoError(f"{path}: cannot read this video: {error.strerror}") from error


class VideoWriter:
    """Writes frames to an MP4 file, each at its time.

    The first frame determines the size of the video; the others are resized to it. Without any frame there is no file.

    Args:
        path: The file to write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._container: OutputContainer | None = None
        self._last = -1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._container is not None:
            with self._explaining(), self._container:
                self._container.mux(self._stream.encode(None))

    def write(self, frame: Frame) -> None:
        """Append a frame, whose time is after that of the last.

        Raises:
            VideoError: The file cannot be written.
        """
        with self._explaining():
            if self._container is None:
                self._open(*(side + side % 2 for side in frame.image.size))
            encoded = av.VideoFrame.from_image(self._fitted(frame.image))
            self._last = max(self._last + 1, round(frame.time / _TIME_BASE))
            encoded.pts, encoded.time_base = self._last, _TIME_BASE
            assert self._container is not None
            self._container.mux(self._stream.encode(encoded))

    def _open(self, width: int, height: int) -> None:
        self._container = av.open(str(self.path), "w", format="mp4")
        self._stream = cast(av.VideoStream, self._container.add_stream(_CODEC))
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv420p"  # which players read, and which needs even sides
        self._stream.codec_context.time_base = _TIME_BASE

    def _fitted(self, image: Image.Image) -> Image.Image:
        size = (self._stream.width, self._stream.height)
        if image.size == (size[0] - image.width % 2, size[1] - image.height % 2):
            return image.crop((0, 0, *size))  # with a black column or row
        return image.resize(size)

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except av.FFmpegError as error:
            raise VideoError(f"{self.path}: cannot write this video: {error.strerror}") from error

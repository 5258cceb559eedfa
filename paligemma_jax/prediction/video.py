"""Frames of video files, read by PyAV (FFmpeg's libraries): which there are, and their pixels.

Frames are known by their time stamps, which are read without decoding anything; so a file with a
damaged part or a rate that varies gives the right frames at the right times. AVI has no stamps:
there frames are counted. A frame is turned as the file asks for, because every player does (images
are not: see `images`).
"""

import collections
import contextlib
import dataclasses
import fractions
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

PROGRESS_PACKETS = 1000
CONVERT = "convert it to H.264: ffmpeg -i FILE -c:v libx264 FILE.mp4"
SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts")


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame of a video.

    Attributes:
      path: of the file.
      number: 0, 1, ... in the order in which they are shown.
      time_s: when it is shown.
      stamp: the same in the file's own units, or the number where it has none.
    """

    path: str
    number: int
    time_s: float
    stamp: int


@dataclasses.dataclass(frozen=True)
class Video:
    """What a file holds: its frames, and how many are shown in a second, on average."""

    frames: tuple[Frame, ...]
    rate: float


DENOMINATOR = 1000  # of a rate: what MP4 and its readers cope with


def is_video(path: str) -> bool:
    """Tells a video by the ending of its name."""
    return path.lower().endswith(SUFFIXES)


def av() -> Any:
    """Returns the module of PyAV.

    Raises:
      ValueError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError(
            f"videos need PyAV ({error}): pip install 'paligemma_jax[video]'"
        ) from error
    return av


def scan(
    path: str | os.PathLike[str], *, progress: Callable[[int, int], None] | None = None
) -> Video:
    """Returns which frames a file holds; decodes none.

    Args:
      path: of the file.
      progress: called now and then with (bytes looked at, bytes of the file).

    Raises:
      ValueError: PyAV is not installed; the file is not there, is no video or has no frames.
    """
    path, raw_stamps = os.fspath(path), []
    with _open(path) as file, _reading(path):
        stream = file.streams.video[0]
        base = stream.time_base if _has_stamps(file) else 1 / stream.average_rate
        with contextlib.suppress(av().error.InvalidDataError):  # the file was cut off there
            for number, packet in enumerate(file.demux(stream)):
                if packet.pts is not None:
                    raw_stamps.append(packet.pts)
                if progress and number % PROGRESS_PACKETS == 0 and packet.pos is not None:
                    progress(packet.pos, file.size)
        stamps = sorted(set(raw_stamps)) if _has_stamps(file) else list(range(len(raw_stamps)))
    if not stamps:
        raise ValueError(f"cannot read video {path}: it has no frames")
    times = [float((stamp - stamps[0]) * base) for stamp in stamps]
    frames = zip(range(len(stamps)), times, stamps, strict=True)
    # A frame is shown till the next one comes, so n frames have n - 1 distances.
    rate = (len(stamps) - 1) / times[-1] if times[-1] else float(stream.average_rate or 1)
    return Video(tuple(Frame(path, *frame) for frame in frames), rate)


def read(path: str | os.PathLike[str], frames: Sequence[Frame]) -> Iterator[np.ndarray | None]:
    """Yields uint8[H, W, 3] for each of the frames, None for one that cannot be decoded.

    Args:
      path: of the file.
      frames: of `scan`, in order of time.

    Raises:
      ValueError: the file cannot be opened (any more).
    """
    waiting = collections.deque(frames)
    for stamp, decoded in _decode(os.fspath(path)):
        # They come in order of time: what is before this one will not come any more.
        while waiting and waiting[0].stamp < stamp:
            waiting.popleft()
            yield None
        if waiting and waiting[0].stamp == stamp:
            waiting.popleft()
            yield _pixels(decoded)
        if not waiting:
            return
    yield from [None] * len(waiting)


def _decode(path: str) -> Iterator[tuple[int, Any]]:
    """Yields (stamp, frame) of all that can be decoded."""
    with _open(path) as file, _reading(path):
        stream = file.streams.video[0]
        stream.thread_type = "AUTO"
        packets, count = file.demux(stream), itertools.count()
        while True:
            try:
                for frame in next(packets).decode():
                    stamp = frame.pts if _has_stamps(file) else next(count)
                    if stamp is not None:
                        yield stamp, frame
            except StopIteration:
                return
            except av().error.InvalidDataError:
                continue  # a damaged packet: those after it may be good


def _has_stamps(file: Any) -> bool:
    return file.format.name != "avi"


def _open(path: str) -> Any:
    with _reading(path):
        file = av().open(path, metadata_errors="replace")  # a title may be in any encoding
    if not file.streams.video:
        file.close()
        raise ValueError(f"cannot read video {path}: it has no pictures")
    if file.streams.video[0].codec_context is None:
        file.close()
        raise ValueError(f"cannot read video {path}: no decoder for its codec; {CONVERT}")
    return file


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    """Names the file in what FFmpeg finds wrong with it."""
    try:
        yield
    except av().error.FFmpegError as error:
        raise ValueError(f"cannot read video {path}: {error.strerror}; {CONVERT}") from error


def _pixels(frame: Any) -> np.ndarray:
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4  # against the clock, as np.rot90
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


class VideoFile:
    """A video that grows by a picture at a time. Close it: see `with`.

    Args:
      path: of the .mp4 file.
      rate: pictures a second.
    """

    def __init__(self, path: str | os.PathLike[str], *, rate: float):
        import av

        self._av, self._stream = av, None
        slowest = fractions.Fraction(1, DENOMINATOR)
        self._rate = max(fractions.Fraction(rate).limit_denominator(DENOMINATOR), slowest)
        self._file = av.open(os.fspath(path), "w", format="mp4", options={"movflags": "faststart"})

    def append(self, picture: Image.Image) -> None:
        """Adds a picture. The first one's size is the video's; others are made as large."""
        # H.264 halves the resolution of colours, so sides are even.
        width, height = (max(2, side - side % 2) for side in picture.size)
        if self._stream is None:
            self._stream = self._file.add_stream("libx264", rate=self._rate)
            self._stream.width, self._stream.height = width, height
            self._stream.pix_fmt = "yuv420p"
        size = self._stream.width, self._stream.height
        fits = (width, height) == size
        picture = picture.crop((0, 0, width, height)) if fits else picture.resize(size)
        self._write(self._av.VideoFrame.from_image(picture.convert("RGB")))

    def close(self) -> None:
        if self._stream is not None:
            self._write(None)
        self._file.close()

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, frame: Any) -> None:
        assert self._stream is not None
        for packet in self._stream.encode(frame):
            self._file.mux(packet)

"""Pictures as a video file, written by PyAV: H.264 in MP4, which browsers show."""

import fractions
import os
from typing import Any

from PIL import Image

DENOMINATOR = 1000  # of a rate: what MP4 and its readers cope with


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

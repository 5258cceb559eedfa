"""Images of a data set as a browser shows them: told by their bytes, whatever their names say.

Pixels are shown as they are stored, as training reads them: no EXIF orientation is applied, and of
16 bits the upper 8 are kept. What no browser shows is given as PNG.
"""

import dataclasses
import functools
import io
import os
import pathlib
import re
import warnings
from typing import Any

from PIL import Image

from paligemma_jax.data import images, locations
from paligemma_jax.files import atomic
from paligemma_jax.importers import pictures

# Pillow's name of a format -> what a browser calls it; others are converted.
BROWSERS = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "GIF": "image/gif",
    "WEBP": "image/webp",
    "BMP": "image/bmp",
}
ENDINGS = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "GIF": ".gif", "WEBP": ".webp"}
ENDINGS |= {"BMP": ".bmp"}
MAX_UPLOAD = 2**26  # bytes of an image that is dropped onto the page
NUM_SMALL = 2000  # thumbnails that are kept
QUALITY = 80


@dataclasses.dataclass(frozen=True)
class Served:
    """An image as it is sent: bytes, what they are, and the size in pixels of the stored one."""

    content: bytes
    mime_type: str
    width: int
    height: int


class Images:
    """Finds the images of a data set, in its folder only.

    Args:
      folder: of the data set.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._located = locations.ImageFolder(folder)
        self._small = functools.lru_cache(NUM_SMALL)(self._draw_small)

    def path(self, name: str) -> str:
        """Returns the path or address of an image, or raises a ValueError that says what is wrong.

        A file that came after the folder was listed is found too.
        """
        path, problem = self._located.locate(name)
        if problem:
            self._located = locations.ImageFolder(self._folder)
            path, problem = self._located.locate(name)
        if problem:
            raise ValueError(problem[1])
        return path

    def size(self, name: str) -> tuple[int, int]:
        """Returns (width, height) in pixels, as they are stored."""
        path = self.path(name)
        size = images.read_size(path)
        if size is None:
            with _opened(self._read(path), name) as picture:
                return picture.size
        return size[1], size[0]

    def serve(self, name: str) -> Served:
        """Returns an image to show, or raises a ValueError if its bytes are none."""
        data = self._read(self.path(name))
        with _opened(data, name) as picture:
            if picture.format in BROWSERS and not picture.mode.startswith("I"):
                return Served(data, BROWSERS[picture.format], *picture.size)
            return Served(_as_png(picture), BROWSERS["PNG"], *picture.size)

    def serve_small(self, name: str, side: int) -> Served:
        """Returns a small one for a grid, whose longer side has at most so many pixels."""
        path = self.path(name)
        changed = 0 if locations.is_address(path) else os.stat(path).st_mtime_ns
        return self._small(path, name, side, changed)

    def add(self, name: str, data: bytes) -> str:
        """Puts an image into the folder and returns its name there.

        The ending is that of what its bytes are; a name that is taken gets a number.

        Raises:
          ValueError: bytes that are no image which training reads, or too many of them.
        """
        if len(data) > MAX_UPLOAD:
            raise ValueError(f"{name:.80}: {len(data)} bytes are more than {MAX_UPLOAD}")
        with _opened(data, name) as picture:
            kind = picture.format or ""
            try:
                picture.load()
            except images.PILLOW_ERRORS as error:
                raise ValueError(f"{name:.80}: a damaged {kind}: {error}") from error
        if kind not in pictures.READABLE:
            known = ", ".join(pictures.READABLE)
            raise ValueError(f"{name:.80} is {kind}; training reads {known}")
        plain = re.sub(r"[^\w.-]+", "_", os.path.basename(name.replace("\\", "/")))
        stem = os.path.splitext(plain)[0].lstrip(".")[:80] or "image"
        places = (f"{stem}{n or ''}{ENDINGS[kind]}" for n in _numbers())
        free = next(one for one in places if not (self._folder / one).exists())
        atomic.write_bytes(self._folder / free, data)
        return free

    def _read(self, path: str) -> bytes:
        if locations.is_address(path):
            return locations.read(path)
        if os.path.getsize(path) > locations.MAX_BYTES:
            raise ValueError(f"{path}: more than {locations.MAX_BYTES} bytes, which no image has")
        return pathlib.Path(path).read_bytes()

    def _draw_small(self, path: str, name: str, side: int, changed: int) -> Served:  # noqa: ARG002 (of the cache's key)
        with _opened(self._read(path), name) as picture:
            width, height = picture.size
            picture.draft("RGB", (side, side))
            small = _eight_bits(picture).convert("RGB")
            small.thumbnail((side, side))
            out = io.BytesIO()
            small.save(out, "JPEG", quality=QUALITY)
        return Served(out.getvalue(), BROWSERS["JPEG"], width, height)


def _opened(data: bytes, name: str) -> Any:
    """Returns an image of Pillow, or raises a ValueError if the bytes are none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data))
    except (*images.PILLOW_ERRORS, Image.DecompressionBombWarning) as error:
        what = locations.describe_head(data[: locations.HEAD_BYTES]) or "no image that is known"
        too_large = "bomb" in type(error).__name__.lower()
        reason = "too many pixels" if too_large else what
        raise ValueError(f"{name:.200}: {reason} ({len(data)} bytes)") from error


def _eight_bits(picture: Any) -> Any:
    if not picture.mode.startswith("I"):
        return picture
    return picture.convert("I").point(lambda value: value / 256).convert("L")


def _as_png(picture: Any) -> bytes:
    out = io.BytesIO()
    plain = _eight_bits(picture)
    (plain if plain.mode in ("L", "RGB") else plain.convert("RGB")).save(out, "PNG")
    return out.getvalue()


def _numbers() -> Any:
    number = 0
    while True:
        yield number
        number += 1 if number else 2

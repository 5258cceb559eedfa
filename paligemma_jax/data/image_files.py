"""Image files, looked at without a model: which are equal, which cannot be opened."""

import concurrent.futures
import dataclasses
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from PIL import ExifTags, Image, UnidentifiedImageError

from paligemma_jax.data import images, locations

Progress = Callable[[int, int], None]

DIGEST_BYTES = 16
BLOCK = 10_000
UPRIGHT = 1  # EXIF's orientation of pixels that are stored as they are seen


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """What decoding a file tells.

    Attributes:
      width, height: in pixels, as they are stored.
      is_turned: whether EXIF asks viewers to turn it, which nothing here does.
      is_16_bit: whether a pixel has more than 8 bits a channel, of which the upper 8 are kept.
      problem: why it cannot be decoded, or None.
    """

    width: int = 0
    height: int = 0
    is_turned: bool = False
    is_16_bit: bool = False
    problem: str | None = None


def read_sizes(paths: Iterable[str]) -> dict[str, int]:
    """Returns the bytes of each file; those at addresses are not asked for, and left out."""
    local = (path for path in dict.fromkeys(paths) if not locations.is_address(path))
    return {path: os.stat(path).st_size for path in local}


def find_contents(
    sizes: Mapping[str, int], *, num_workers: int, progress: Progress | None = None
) -> dict[str, str]:
    """Returns path -> a name of its bytes: two files have the same one if their bytes are equal.

    Only files of one size can be equal, so the others are not read. Empty files are not compared.

    Args:
      sizes: bytes of each file.
      num_workers: files read at a time.
      progress: called with (bytes read, bytes to read).
    """
    by_size: dict[int, list[str]] = {}
    for path, size in sizes.items():
        by_size.setdefault(size, []).append(path)
    candidates = [p for size, paths in by_size.items() if size and len(paths) > 1 for p in paths]
    weights = [sizes[path] for path in candidates]
    digests = _map(_digest, candidates, weights, num_workers=num_workers, progress=progress)
    return {path: path for path in sizes} | dict(zip(candidates, digests, strict=True))


def decode_all(
    paths: Sequence[str], *, num_workers: int, progress: Progress | None = None
) -> dict[str, ImageFile]:
    """Returns what every file holds, decoded with the ops that training decodes with.

    Args:
      paths: the files.
      num_workers: files decoded at a time.
      progress: called with (files done, files).
    """
    images.tensorflow()  # once, before the threads
    decoded = _map(decode, paths, [1] * len(paths), num_workers=num_workers, progress=progress)
    return dict(zip(paths, decoded, strict=True))


def decode(path: str) -> ImageFile:
    """Returns what one file holds; never raises on its content."""
    try:
        file = io.BytesIO(locations.read(path)) if locations.is_address(path) else path
        with Image.open(file) as header:
            orientation = header.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
            has_16_bits = header.mode.startswith("I")
    except Image.DecompressionBombError as error:
        return ImageFile(problem=f"too large: {error}")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        orientation, has_16_bits = UPRIGHT, False  # the decoder says what is wrong
    try:
        height, width = images.measure(path)
    except ValueError as error:
        return ImageFile(problem=str(error))
    return ImageFile(width, height, orientation not in (0, UPRIGHT), has_16_bits)


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, _hash).hexdigest()


def _hash() -> Any:
    return hashlib.blake2b(digest_size=DIGEST_BYTES)


def _map(
    function: Callable[[str], Any],
    paths: Sequence[str],
    weights: Sequence[int],
    *,
    num_workers: int,
    progress: Progress | None,
) -> list[Any]:
    """Returns function(path) for each path, in threads; a file's weight counts when it is done."""
    results, done, total = [], 0, sum(weights)
    with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
        for start in range(0, len(paths), BLOCK):  # a task takes memory until it is done
            for result in pool.map(function, paths[start : start + BLOCK]):
                done += weights[len(results)]
                results.append(result)
                if progress:
                    progress(done, total)
    return results

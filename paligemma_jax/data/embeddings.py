"""Embeddings of images on the disk: made once, read in every pass over the data.

Who embeds is no business of this file: it gets a function. A store is a folder for one embedder,
with a file per image, named by a hash of the image file's bytes:

    FOLDER/3f/3f9a..c2.bin      CRC-32 of the rest, 4 bytes, little-endian; float[P, D], row by row

A file appears whole, under its name, or not at all; what is read is compared with its CRC. One
process fills a store at a time, and nobody ever removes an entry that is whole.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import math
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from paligemma_jax.data import locations, pipeline, records
from paligemma_jax.files import atomic

Progress = Callable[[int, int], None]
# uint8[B, 1, R, R, 3] -> float[B, 1, P, D], B the same in every call.
Embed = Callable[[np.ndarray], np.ndarray]

DIGEST_BYTES = 16
CRC_BYTES = 4
LOCK = "lock"


class DamagedError(ValueError):
    """An entry is not what was written."""


@dataclasses.dataclass(frozen=True)
class Store:
    """Embeddings of one embedder.

    Attributes:
      folder: holds them, and nothing else.
      shape: (P, D) of an image's embedding.
      dtype: of its numbers, as numpy has it.
    """

    folder: pathlib.Path
    shape: tuple[int, int]
    dtype: Any

    @property
    def entry_bytes(self) -> int:
        """Size of an entry's file."""
        return CRC_BYTES + math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def path(self, digest: str) -> pathlib.Path:
        """Returns the place of an image's entry."""
        return self.folder / digest[:2] / f"{digest}.bin"

    def read(self, digest: str) -> np.ndarray:
        """Returns the embedding [P, D] of an image.

        Raises:
          FileNotFoundError: it was not made.
          DamagedError: its size or its CRC is another one.
        """
        data = self.path(digest).read_bytes()
        if len(data) != self.entry_bytes:
            raise DamagedError(f"{self.path(digest)}: {len(data)} bytes, not {self.entry_bytes}")
        if zlib.crc32(data[CRC_BYTES:]) != int.from_bytes(data[:CRC_BYTES], "little"):
            raise DamagedError(f"{self.path(digest)}: its CRC-32 is not that of its bytes")
        return np.frombuffer(data, self.dtype, offset=CRC_BYTES).reshape(self.shape)

    def write(self, digest: str, embedding: np.ndarray) -> None:
        """Keeps the embedding [P, D] of an image."""
        if embedding.shape != self.shape:
            raise ValueError(f"an embedding of shape {embedding.shape}, expected {self.shape}")
        data = np.ascontiguousarray(embedding, self.dtype).tobytes()
        path = self.path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.new_file(path) as unfinished:
            unfinished.write_bytes(zlib.crc32(data).to_bytes(CRC_BYTES, "little") + data)


@contextlib.contextmanager
def alone(store: Store, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Lets one process at a time fill a store; `waits` is called once if another one does.

    What a process that was killed left unfinished is removed.
    """
    store.folder.mkdir(parents=True, exist_ok=True)
    with atomic.exclusive(store.folder / LOCK, waiting=functools.cache(waits)):
        for path in store.folder.glob(f"*/*{atomic.SUFFIX}"):
            path.unlink()
        yield


def hash_images(
    examples: Iterable[records.Record],
    *,
    num_workers: int | None,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Returns path -> hash of the bytes of each image file, 32 hexadecimal digits.

    Raises:
      ValueError: a file that cannot be read, with the record's source.
    """
    sources = {path: one.source for one in examples for path in one.images}

    def digest(path: str) -> str:
        try:
            data = (
                locations.read(path)
                if locations.is_address(path)
                else pathlib.Path(path).read_bytes()
            )
        except (OSError, locations.RemoteError) as error:
            raise ValueError(f"{sources[path]}: cannot read image {path}: {error}") from error
        return hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()

    return dict(zip(sources, _map(digest, list(sources), num_workers, progress), strict=True))


def survey(
    store: Store,
    digests: Iterable[str],
    *,
    num_workers: int | None,
    progress: Progress | None = None,
) -> tuple[list[str], list[str]]:
    """Returns (digests without an entry, those whose entry is damaged), after reading all."""

    def look(digest: str) -> str:
        try:
            store.read(digest)
        except FileNotFoundError:
            return "missing"
        except DamagedError:
            return "damaged"
        return "whole"

    chosen = list(dict.fromkeys(digests))
    states = list(zip(chosen, _map(look, chosen, num_workers, progress), strict=True))
    missing, damaged = (
        [digest for digest, state in states if state == wanted] for wanted in ("missing", "damaged")
    )
    return missing, damaged


def check_space(store: Store, num_entries: int) -> None:
    """Raises an OSError if the disk has no room for so many more entries."""
    atomic.require_space(
        store.folder,
        num_entries * store.entry_bytes,
        what=f"a cache of {num_entries} image embeddings",
        remedy="make room (the folders beside it are of other models, and may be removed), or "
        "train without it",
    )


def fill(
    store: Store,
    examples: Mapping[str, records.Record],
    embed: Embed,
    *,
    res: int,
    batch_size: int,
    num_workers: int | None,
    resampling: str = pipeline.BatchSpec.resampling,
    progress: Progress | None = None,
) -> None:
    """Makes an entry of each image.

    Args:
      store: where.
      examples: digest -> a record with one image, the one that has it.
      embed: called with `batch_size` images each time; in the last call the last one is repeated.
      res: side of the images in pixels.
      batch_size: B.
      num_workers: images decoded at a time; None is one per core.
      resampling: how images become squares, one of `images.RESAMPLINGS`.
      progress: called with (entries made, all of `examples`).

    Raises:
      ValueError: an image that cannot be read, or whose embedding is not finite.
    """
    digests = list(examples)
    starts = range(0, len(digests), batch_size)
    batches = [digests[start : start + batch_size] for start in starts]

    def plan() -> Iterator[list[pipeline.Example]]:
        for batch in batches:
            full = batch + batch[-1:] * (batch_size - len(batch))
            yield [(examples[digest], 0) for digest in full]

    pixels = pipeline.read_image_batches(
        plan,
        res=res,
        batch_size=batch_size,
        max_images=1,
        num_workers=num_workers,
        resampling=resampling,
    )
    done = 0
    for batch, images in zip(batches, pixels, strict=True):
        for digest, (embedding,) in zip(batch, embed(images), strict=False):
            if not np.isfinite(embedding).all():
                raise ValueError(
                    f"the embedding of {examples[digest].images[0]} is not finite in "
                    f"{np.dtype(store.dtype)}: look at the weights of the vision tower, or keep "
                    f"and compute embeddings in a type of wider range"
                )
            store.write(digest, embedding)
        done += len(batch)
        if progress:
            progress(done, len(examples))


def read_batches(
    plan: pipeline.Plan,
    store: Store,
    digests: Mapping[str, str],
    *,
    max_images: int,
    num_workers: int | None,
    prefetch: int,
) -> Iterator[np.ndarray]:
    """Yields float[B, M, P, D] for each batch of `plan()`; an unused slot is zeros.

    Args:
      plan: batches of examples.
      store: has an entry of each of their images.
      digests: path -> name of its entry.
      max_images: M.
      num_workers: entries read at a time; None is one per core.
      prefetch: batches read ahead of use.

    Raises:
      ValueError: an entry that is gone or damaged, which it was not when the run began.
    """

    def read(path: str, source: str) -> np.ndarray:
        try:
            return store.read(digests[path])
        except (OSError, DamagedError) as error:
            raise ValueError(
                f"{source}: the embedding of {path} was changed since this run began: {error}. The "
                f"same command makes it again, and goes on"
            ) from error

    def join(examples: Sequence[pipeline.Example], pending: list[Any]) -> np.ndarray:
        batch = np.zeros((len(examples), max_images, *store.shape), store.dtype)
        slots = ((row, slot) for row, (one, _) in enumerate(examples) for slot in _slots(one))
        for place, future in zip(slots, pending, strict=True):
            batch[place] = future.result()
        return batch

    ahead: collections.deque[tuple[Sequence[pipeline.Example], list[Any]]]
    ahead = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
        for examples in plan():
            images = [(path, one.source) for one, _ in examples for path in one.images]
            ahead.append((examples, [pool.submit(read, *image) for image in images]))
            if len(ahead) > prefetch:
                yield join(*ahead.popleft())
        while ahead:
            yield join(*ahead.popleft())


def _slots(record: records.Record) -> range:
    return range(len(record.images))


def _map(
    function: Callable[[str], str],
    items: Sequence[str],
    num_workers: int | None,
    progress: Progress | None,
) -> list[str]:
    """Returns function(item) for each item, in threads."""
    results = []
    with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
        for result in pool.map(function, items):
            results.append(result)
            if progress:
                progress(len(results), len(items))
    return results

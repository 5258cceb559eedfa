"""Large files: written at the speed of their disk, and read in the parts they are published in.

Through the page cache, 6 GB of weights would evict what other programs keep there, and wait twice:
for the copy, and at the end for the disk. Here one buffer is filled while a thread writes the
other. Where the system or the disk does not support O_DIRECT, the buffers go through the cache.
"""

import bisect
import concurrent.futures
import contextlib
import errno
import io
import itertools
import mmap
import os
import pathlib
import re

# A multiple of the alignment that any disk requires of sizes and offsets.
BLOCK_BYTES = 4 * 2**20
FLAGS = os.O_WRONLY | getattr(os, "O_BINARY", 0)
DIRECT = getattr(os, "O_DIRECT", 0)


class _Placed(io.RawIOBase):
    """A file that keeps its own place: `_at`, of `_size` bytes."""

    name: str
    _at = 0

    @property
    def _size(self) -> int:
        raise NotImplementedError

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError(f"{self.name}: no byte at {start + offset}")
        self._at = start + offset
        return self._at


class DirectFile(_Placed):
    """A file that is written from beginning to end; `sync` completes it.

    Bytes that were written may be overwritten, as zipfile does with its headers; the new ones reach
    the file with `sync`. Errors of the disk (OSError) are raised by a later `write`, or by `sync`.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.name = os.fspath(path)
        self._path = pathlib.Path(path)
        self._path.write_bytes(b"")
        self._buffers = [mmap.mmap(-1, BLOCK_BYTES) for _ in range(2)]
        self._used = 0  # bytes in the buffer that is being filled
        self._submitted = 0  # bytes before these
        self._patches: list[tuple[int, bytes]] = []
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._pending = self._thread.submit(int)
        self._descriptor = _open_direct(self._path)

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        view = memoryview(data).cast("B")
        if self._at < self._size:
            self._patches.append((self._at, bytes(view)))
            self._at += len(view)
            return len(view)
        done = 0
        while done < len(view):
            part = view[done : done + BLOCK_BYTES - self._used]
            self._buffers[0][self._used : self._used + len(part)] = part
            self._used += len(part)
            done += len(part)
            if self._used == BLOCK_BYTES:
                self._submit()
        self._at = self._size
        return done

    def sync(self) -> None:
        """Writes what is still in memory, and returns when the whole file is on the disk."""
        self._pending.result()
        with open(self._path, "r+b") as file:
            file.seek(self._submitted)
            file.write(memoryview(self._buffers[0])[: self._used])
            for place, data in self._patches:
                file.seek(place)
                file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        if not self.closed:
            self._thread.shutdown()
            os.close(self._descriptor)
        super().close()

    @property
    def _size(self) -> int:
        return self._submitted + self._used

    def _submit(self) -> None:
        """Starts writing the full buffer, once the other one is written."""
        self._pending.result()
        self._pending = self._thread.submit(self._write_block, self._buffers[0], self._submitted)
        self._submitted += BLOCK_BYTES
        self._used = 0
        self._buffers.reverse()

    def _write_block(self, buffer: mmap.mmap, place: int) -> None:
        view, done = memoryview(buffer), 0
        while done < BLOCK_BYTES:
            try:
                done += os.write(self._descriptor, view[done:])
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                # The disk requires another alignment; any other problem raises again below.
                os.close(self._descriptor)
                self._descriptor = os.open(self._path, FLAGS)
                os.lseek(self._descriptor, place + done, os.SEEK_SET)
                done += os.write(self._descriptor, view[done:])


def _open_direct(path: pathlib.Path) -> int:
    if DIRECT:
        with contextlib.suppress(OSError):
            return os.open(path, FLAGS | DIRECT)
    return os.open(path, FLAGS)


# A file that was split, because it was too large to be uploaded: its parts, read as one file.
#
# PaliGemma 2 28B is published so: NAME.npz.part0, NAME.npz.part1, ...; its model card joins them
# with `cat`. Here nothing is joined on the disk: 56 GB would be there twice.

Path = str | os.PathLike[str]

# Numbers, or the letters that `split` gives: .part0 .part1 ..., .part00 ..., .partaa .partab ...
PART = re.compile(r"(.+)\.part([0-9]+|[a-z]{2})")
FIRST_SUFFIXES = ("0", "00", "aa")


def find_parts(path: Path) -> list[pathlib.Path]:
    """Returns the files whose bytes, one after the other, are those of a file.

    Args:
      path: a file, a file that is there in parts only, or one of the parts.

    Returns:
      `path` itself where it is whole, or where there is nothing at all.

    Raises:
      ValueError: a part is missing between others.
    """
    path = pathlib.Path(path)
    match = PART.fullmatch(path.name)
    if not match and path.exists():
        return [path]
    whole = match[1] if match else path.name
    parts = {}
    for other in path.parent.iterdir() if path.parent.is_dir() else ():
        if (part := PART.fullmatch(other.name)) and part[1] == whole:
            parts[len(part[2]), part[2]] = other
    suffixes = [suffix for _, suffix in sorted(parts)]
    for one, following in itertools.pairwise(suffixes):
        if following != suffix_after(one):
            names = ", ".join(parts[key].name for key in sorted(parts))
            raise ValueError(
                f"{path.parent}: {whole}.part{suffix_after(one)} is missing; found {names}"
            )
    return [parts[key] for key in sorted(parts)] or [path]


def suffix_after(suffix: str) -> str:
    """Returns the suffix of the next part: "0" -> "1", "09" -> "10", "az" -> "ba"."""
    if suffix.isdigit():
        return str(int(suffix) + 1).zfill(len(suffix))
    first, last = suffix
    return first + chr(ord(last) + 1) if last != "z" else chr(ord(first) + 1) + "a"


def open_raw(path: Path) -> io.RawIOBase:
    """Opens a file, or all its parts as one, for reading bytes without a buffer."""
    paths = find_parts(path)
    return open(path, "rb", buffering=0) if paths == [pathlib.Path(path)] else Joined(paths)


class Joined(_Placed):
    """Files that are read as if they were one."""

    def __init__(self, paths: list[pathlib.Path]):
        self.name = os.fspath(paths[0])
        self._opened = contextlib.ExitStack()
        self._files = [self._opened.enter_context(io.FileIO(path)) for path in paths]
        self._ends = list(itertools.accumulate(path.stat().st_size for path in paths))

    @property
    def _size(self) -> int:
        return self._ends[-1]

    def close(self) -> None:
        self._opened.close()
        super().close()

    def readable(self) -> bool:
        return True

    def readinto(self, room) -> int:
        number = bisect.bisect_right(self._ends, self._at)
        if number == len(self._files):
            return 0
        file, end = self._files[number], self._ends[number]
        file.seek(self._at - end, os.SEEK_END)
        count = file.readinto(memoryview(room).cast("B")[: end - self._at])
        self._at += count
        return count

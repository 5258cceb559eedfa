"""A file that was split, because it was too large to be uploaded: its parts, read as one file.

PaliGemma 2 28B is published so: NAME.npz.part0, NAME.npz.part1, ...; its model card joins them with
`cat`. Here nothing is joined on the disk: 56 GB would be there twice.
"""

import bisect
import contextlib
import io
import itertools
import os
import pathlib
import re

Path = str | os.PathLike[str]

# Numbers, or the letters that `split` gives: .part0 .part1 ..., .part00 ..., .partaa .partab ...
PART = re.compile(r"(.+)\.part([0-9]+|[a-z]{2})")
FIRST = ("0", "00", "aa")


def find(path: Path) -> list[pathlib.Path]:
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
        if following != after(one):
            names = ", ".join(parts[key].name for key in sorted(parts))
            raise ValueError(f"{path.parent}: {whole}.part{after(one)} is missing; found {names}")
    return [parts[key] for key in sorted(parts)] or [path]


def after(suffix: str) -> str:
    """Returns the suffix of the next part: "0" -> "1", "09" -> "10", "az" -> "ba"."""
    if suffix.isdigit():
        return str(int(suffix) + 1).zfill(len(suffix))
    first, last = suffix
    return first + chr(ord(last) + 1) if last != "z" else chr(ord(first) + 1) + "a"


def open_raw(path: Path) -> io.RawIOBase:
    """Opens a file, or all its parts as one, for reading bytes without a buffer."""
    paths = find(path)
    return open(path, "rb", buffering=0) if paths == [pathlib.Path(path)] else Joined(paths)


class Joined(io.RawIOBase):
    """Files that are read as if they were one."""

    def __init__(self, paths: list[pathlib.Path]):
        self.name = os.fspath(paths[0])
        self._opened = contextlib.ExitStack()
        self._files = [self._opened.enter_context(io.FileIO(path)) for path in paths]
        self._ends = list(itertools.accumulate(path.stat().st_size for path in paths))
        self._at = 0

    def close(self) -> None:
        self._opened.close()
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._ends[-1]}[whence]
        if start + offset < 0:
            raise OSError(f"{self.name}: no byte at {start + offset}")
        self._at = start + offset
        return self._at

    def readinto(self, room) -> int:
        number = bisect.bisect_right(self._ends, self._at)
        if number == len(self._files):
            return 0
        file, end = self._files[number], self._ends[number]
        file.seek(self._at - end, os.SEEK_END)
        count = file.readinto(memoryview(room).cast("B")[: end - self._at])
        self._at += count
        return count

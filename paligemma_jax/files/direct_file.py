"""A new file at the speed of its disk: past the page cache, while the next bytes are made ready.

Written through the page cache, 6 GB of weights push out what others keep there, and wait twice: for
the copy, and at the end for the disk. Here two blocks take turns: one is filled while a thread
writes the other. Where the system or the disk cannot do so (O_DIRECT), blocks take the usual way.
"""

import concurrent.futures
import contextlib
import errno
import io
import mmap
import os
import pathlib

# A multiple of what any disk wants sizes and places to be a multiple of.
BLOCK_BYTES = 4 * 2**20
FLAGS = os.O_WRONLY | getattr(os, "O_BINARY", 0)
DIRECT = getattr(os, "O_DIRECT", 0)


class DirectFile(io.RawIOBase):
    """A file that is written from its beginning to its end; `sync` completes it.

    What was written may be written over, as zip does with its headers; that reaches the file with
    `sync`. Errors of the disk (OSError) come out of a later `write`, or of `sync`.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = pathlib.Path(path)
        self._path.write_bytes(b"")
        self._rooms = [mmap.mmap(-1, BLOCK_BYTES) for _ in range(2)]
        self._used = 0  # bytes in the room that is being filled
        self._handed = 0  # bytes before these
        self._at = 0
        self._patches: list[tuple[int, bytes]] = []
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._pending = self._thread.submit(int)
        self._descriptor = _open_direct(self._path)

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def write(self, data) -> int:
        view = memoryview(data).cast("B")
        if self._at < self._size:
            self._patches.append((self._at, bytes(view)))
            self._at += len(view)
            return len(view)
        done = 0
        while done < len(view):
            part = view[done : done + BLOCK_BYTES - self._used]
            self._rooms[0][self._used : self._used + len(part)] = part
            self._used += len(part)
            done += len(part)
            if self._used == BLOCK_BYTES:
                self._hand_over()
        self._at = self._size
        return done

    def sync(self) -> None:
        """Writes what is left, and returns when all of it is on the disk."""
        self._pending.result()
        with open(self._path, "r+b") as file:
            file.seek(self._handed)
            file.write(memoryview(self._rooms[0])[: self._used])
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
        return self._handed + self._used

    def _hand_over(self) -> None:
        """Has the full room written, when the other one is."""
        self._pending.result()
        self._pending = self._thread.submit(self._write_block, self._rooms[0], self._handed)
        self._handed += BLOCK_BYTES
        self._used = 0
        self._rooms.reverse()

    def _write_block(self, room: mmap.mmap, place: int) -> None:
        view, done = memoryview(room), 0
        while done < BLOCK_BYTES:
            try:
                done += os.write(self._descriptor, view[done:])
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                # The disk wants another alignment; if it is not that, this fails as well.
                os.close(self._descriptor)
                self._descriptor = os.open(self._path, FLAGS)
                os.lseek(self._descriptor, place + done, os.SEEK_SET)
                done += os.write(self._descriptor, view[done:])


def _open_direct(path: pathlib.Path) -> int:
    if DIRECT:
        with contextlib.suppress(OSError):
            return os.open(path, FLAGS | DIRECT)
    return os.open(path, FLAGS)

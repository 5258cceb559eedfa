"""Files and folders that appear whole or not at all, one writer at a time, and room for them.

What is written goes beside its place, under the same name with `SUFFIX`, and is renamed when it is
complete. A process that is killed leaves at most that unfinished file, which the next one replaces.
What the disk refuses is an error that names the file and says what to do: `WriteError`.
"""

import contextlib
import errno
import glob
import json
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import filelock

Path = str | os.PathLike[str]

SUFFIX = ".tmp"
LOCK = "in-use.lock"  # in a folder that one process works in

# What the system says when a disk takes no more: in words, and what to do about it.
AGAIN = "then give the same command again"
ROOM = f"make room there, {AGAIN}"
REFUSALS = {
    errno.ENOSPC: ("its disk is full", ROOM),
    errno.EDQUOT: ("your quota on its disk is used up", ROOM),
    errno.EFBIG: ("it is larger than a file may be", "raise the limit: ulimit -f, or another disk"),
    errno.EROFS: ("its disk is read-only", "choose another folder"),
    errno.EIO: ("its disk failed", "look at the system's log, or choose another disk"),
    errno.EMFILE: ("this process has too many files open", "raise the limit: ulimit -n"),
    errno.ENFILE: ("the system has too many files open", "close other programs"),
}


class WriteError(OSError):
    """A file that the disk did not take: its text names the file, why, and what to do."""

    def __str__(self) -> str:
        return str(self.strerror)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes an error of the disk in the block a `WriteError` that names the file `path`."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        if (worded := explain(error, path)) is error:
            raise
        raise worded from error


def explain(error: OSError, path: Path) -> OSError:
    """Returns the `WriteError` for an error of the disk; another error is returned as it is."""
    path = pathlib.Path(path)
    why, remedy = REFUSALS.get(error.errno or 0, ("", ""))
    if error.errno == errno.ENOSPC and not _free_inodes(path):
        why, remedy = "its disk has no room for one more file", f"remove files there, {AGAIN}"
    if isinstance(error, FileNotFoundError) and not path.parent.exists():
        why = f"its folder {path.parent} is not there any more: it was removed or moved"
        remedy = "put it back, or choose another one"
    if not why:
        return error
    reason = os.strerror(error.errno or 0)
    return WriteError(error.errno, f"{path} is not written: {why} ({reason}); {remedy}")


def _free_inodes(path: pathlib.Path) -> int:
    """Returns how many files a disk has room for; 1 where it does not count them."""
    try:
        counts = os.statvfs(nearest_existing(path))
    except (AttributeError, OSError):
        return 1
    return counts.f_favail if counts.f_files else 1


def require_same(path: Path, before: os.stat_result) -> None:
    """Raises a WriteError if a file or folder was removed, moved or replaced since `before`."""
    try:
        is_same = os.path.samestat(os.stat(path), before)
    except (FileNotFoundError, NotADirectoryError):
        is_same = False
    if not is_same:
        raise WriteError(
            errno.ENOENT,
            f"{os.fspath(path)} is not there any more: it was removed, moved or replaced while it "
            f"was written to. Put it back and give the same command again, or choose another place",
        )


class GrowingFile:
    """A file that grows by whole pieces: what is not written in full is taken back.

    Args:
      path: the file, made if need be; its folder exists.
      first: piece to begin with.

    Raises:
      WriteError: the disk refuses a piece, or the file is not there any more.
    """

    def __init__(self, path: Path, *, first: bytes = b""):
        self.path = pathlib.Path(path)
        with writing(self.path):
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (closed by close)
        try:
            if first:
                self.append(first)
        except OSError:
            self._file.close()
            raise

    def append(self, piece: bytes) -> None:
        """Writes a piece at once. A reader beside this process sees whole pieces."""
        opened = os.fstat(self._file.fileno())
        require_same(self.path, opened)
        with writing(self.path):
            try:
                # A disk that becomes full takes a part of a piece, and refuses the rest.
                done = self._file.write(piece)
                while done < len(piece):
                    done += self._file.write(piece[done:])
            except OSError:
                with contextlib.suppress(OSError):
                    self._file.truncate(opened.st_size)
                raise

    def sync(self) -> None:
        """Returns when all pieces are on the disk, also for a machine that loses its power."""
        with writing(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def new_file(path: Path, *, temporary: Path | None = None) -> Iterator[pathlib.Path]:
    """Yields where to write a file, which takes the place of `path` when the block is done.

    If the block raises, what it wrote is removed and what was at `path` is unchanged.

    Args:
      path: the file to make or to replace; its folder exists.
      temporary: where to write instead of `path` + ".tmp", on the same disk: a name of its own for
        each process where several may write the same file at once.
    """
    path = pathlib.Path(path)
    beside = pathlib.Path(temporary or path.with_name(path.name + SUFFIX))
    with writing(path):
        try:
            yield beside
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[pathlib.Path]:
    """Yields a folder to fill, which takes the place of `folder` and all in it: as `new_file`.

    What else is needed meanwhile may lie in the folder above the one to fill: it goes at the end,
    or with the next of the same name.
    """
    folder = pathlib.Path(folder)
    with _folder_beside(folder) as made:
        yield made
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(made, folder)


@contextlib.contextmanager
def files_of_folder(folder: Path, *, stale: Iterable[str] = ()) -> Iterator[pathlib.Path]:
    """Yields a folder to fill, whose files are moved into `folder` when the block is done.

    Files of the same name are replaced, others stay, except those that match a pattern of `stale`.
    """
    folder = pathlib.Path(folder)
    with _folder_beside(folder) as made:
        yield made
        if not folder.exists():
            os.replace(made, folder)
            return
        for pattern in stale:
            for old in folder.glob(pattern):
                old.unlink()
        for file in made.iterdir():
            os.replace(file, folder / file.name)


@contextlib.contextmanager
def _folder_beside(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        # The temporary folder is its owner's alone; the one inside gets the usual permissions.
        with _owned_folder(folder) as unfinished:
            made = unfinished / "made"
            made.mkdir()
            yield made


def try_lock(lock_file: pathlib.Path) -> filelock.BaseFileLock | None:
    """Returns a lock to be released, or None if another process has it.

    Raises:
      OSError, NotImplementedError: the folder is not there, or its disk knows no locks.
    """
    lock = filelock.FileLock(lock_file, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return None
    return lock


@contextlib.contextmanager
def _owned_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields an empty folder beside `folder`, NAME.xxxxxxxx + SUFFIX, and removes it at the end.

    Those that a killed process left for the same name are removed first: nobody holds the lock that
    lies in them, or they are empty, as it had no time to lock them. Where the disk knows no locks,
    they stay.
    """
    prefix, unlocked = f"{folder.name}.", (OSError, NotImplementedError)
    for other in folder.parent.glob(f"{glob.escape(prefix)}*{SUFFIX}"):
        with contextlib.suppress(*unlocked):
            is_left = (other / LOCK).is_file() or not any(other.iterdir())
            if is_left and (lock := try_lock(other / LOCK)):
                shutil.rmtree(other, ignore_errors=True)
                lock.release()
    while True:
        made = pathlib.Path(tempfile.mkdtemp(prefix=prefix, suffix=SUFFIX, dir=folder.parent))
        try:
            lock = try_lock(made / LOCK)
        except unlocked:
            lock = None
            if made.exists():
                break
        if lock and made.exists():
            break  # else another process took it for one that was left, before it was locked
    try:
        yield made
    finally:
        if lock:
            lock.release()
        shutil.rmtree(made, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Returns when the renames in a folder are on the disk. Windows cannot do so and need not."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file, in place of the old one if there is one; makes its folder.

    Half a surrogate pair, which UTF-8 cannot hold, is written as JSON spells it: \\ud800.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_text`, of bytes."""
    path = pathlib.Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as unfinished:
        unfinished.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Writes nested dictionaries, lists and numbers as JSON; nan and infinities become null."""
    write_text(path, _dumps(value, indent=2) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one line of JSON per row (predictions.jsonl); nan and infinities become null."""
    write_text(path, "".join(_dumps(row) + "\n" for row in rows))


def _dumps(value: Any, *, indent: int | None = None) -> str:
    return json.dumps(_to_json(value), indent=indent, allow_nan=False, ensure_ascii=False)


def _to_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(inner) for inner in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def nearest_existing(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path itself if it exists, else the nearest folder above it that does."""
    path = pathlib.Path(path)
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def free_bytes(folder: str | os.PathLike[str]) -> int:
    """Returns what is free on the disk that a folder is on, or will be on once it is made."""
    return shutil.disk_usage(nearest_existing(folder)).free


def require_space(
    folder: str | os.PathLike[str], num_bytes: int, *, what: str, remedy: str
) -> None:
    """Raises an OSError (ENOSPC) if the disk of a folder has less than `num_bytes` free.

    Args:
      folder: where it will be written; need not exist yet.
      num_bytes: that will be written.
      what: needs them, the subject of the message.
      remedy: what to do about it, the end of the message.
    """
    free = free_bytes(folder)
    if num_bytes > free:
        raise WriteError(
            errno.ENOSPC,
            f"{what} needs {_in_words(num_bytes)} and {os.fspath(folder)} has {_in_words(free)} "
            f"free; {remedy}",
        )


# One process at a time, among all that can see the same disk.

LOOK_S = 1.0  # how often to look whether another process is done


@contextlib.contextmanager
def exclusive(
    lock_file: str | os.PathLike[str], *, waiting: Callable[[], object] | None = None
) -> Iterator[None]:
    """Runs the block while no other process is in a block of the same lock file.

    The system releases the lock of a process that is killed: it holds up nobody.

    Args:
      lock_file: made if need be; its folder exists.
      waiting: called at once, and then every second, while another process has the lock.
    """
    lock = filelock.FileLock(lock_file)
    timeout = 0.0
    while not lock.is_locked:
        try:
            lock.acquire(timeout=timeout)
        except filelock.Timeout:
            if waiting:
                waiting()
            timeout = LOOK_S
    try:
        yield
    finally:
        lock.release()


def _in_words(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 10**7 else f"{num_bytes / 1e3:.1f} kB"

"""Files and folders that appear whole or not at all, one writer at a time, and room for them.

What is written goes beside its place, under the same name with `SUFFIX`, and is renamed when it is
complete. A process that is killed leaves at most that unfinished file, which the next one replaces.
"""

import contextlib
import errno
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
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[pathlib.Path]:
    """Yields a folder to fill, which takes the place of `folder` and all in it: as `new_file`."""
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
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The temporary folder is its owner's alone; the one inside gets the usual permissions.
    with tempfile.TemporaryDirectory(
        prefix=folder.name + ".", suffix=SUFFIX, dir=folder.parent, ignore_cleanup_errors=True
    ) as unfinished:
        made = pathlib.Path(unfinished) / "made"
        made.mkdir()
        yield made


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
        raise OSError(
            errno.ENOSPC,
            f"{what} needs {num_bytes / 1e9:.2f} GB and {os.fspath(folder)} has {free / 1e9:.2f} "
            f"GB free; {remedy}",
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

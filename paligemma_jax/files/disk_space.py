"""Whether a disk has room for what is about to be written, looked at before the first byte."""

import errno
import os
import pathlib
import shutil


def nearest_existing(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path itself if it exists, else the nearest folder above it that does."""
    path = pathlib.Path(path)
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def free_bytes(folder: str | os.PathLike[str]) -> int:
    """Returns what is free on the disk that a folder is on, or will be on once it is made."""
    return shutil.disk_usage(nearest_existing(folder)).free


def require(folder: str | os.PathLike[str], num_bytes: int, *, what: str, remedy: str) -> None:
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

"""One process at a time, among all that can see the same disk."""

import contextlib
import os
from collections.abc import Callable, Iterator

import filelock

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

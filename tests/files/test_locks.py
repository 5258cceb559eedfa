"""One process at a time."""

import filelock
import pytest

from paligemma_jax.files import locks


def test_waiting_is_reported_at_once_and_ends_when_the_lock_is_free(tmp_path):
    other, calls = filelock.FileLock(tmp_path / "lock", thread_local=False), []

    def waiting():
        calls.append("waiting")
        other.release()

    other.acquire()
    with locks.exclusive(tmp_path / "lock", waiting=waiting):
        assert calls == ["waiting"]
        with pytest.raises(filelock.Timeout):
            other.acquire(timeout=0)


def test_a_lock_is_free_again_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locks.exclusive(tmp_path / "lock"):
        raise ZeroDivisionError
    with locks.exclusive(tmp_path / "lock", waiting=lambda: pytest.fail("it is still locked")):
        pass

"""A write that fails, is killed or finds no room leaves the good file as it was."""

import errno
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from paligemma_jax.checkpoints import npz


def some_params():
    return {"a": np.arange(1000.0), "b": np.ones((3, 4), "float16")}


KILLED = """
import os, signal, sys
import numpy as np
from paligemma_jax.checkpoints import npz

def kill(done, total):
    if done == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

npz.write(sys.argv[1], {name: np.zeros(100_000, "int8") for name in "abc"}, progress=kill)
"""


@pytest.mark.parametrize("done", [100_000, 300_000])
def test_a_killed_write_leaves_the_good_file_and_the_next_one_succeeds(tmp_path, done):
    path = tmp_path / "a.npz"
    npz.write(path, some_params())
    good = path.read_bytes()
    command = [sys.executable, "-c", KILLED, str(path), str(done)]
    ran = subprocess.run(command, cwd=pathlib.Path(__file__).parents[2], check=False)
    assert ran.returncode == -signal.SIGKILL
    assert path.read_bytes() == good
    npz.write(path, {"w": np.zeros(9)})
    assert list(npz.read(path)) == ["w"] and list(tmp_path.iterdir()) == [path]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("error", [Killed(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_failed_write_leaves_the_good_file_and_nothing_else(tmp_path, error):
    def fail_in_the_middle(done, total):
        raise error

    path = tmp_path / "a.npz"
    npz.write(path, some_params())
    good = path.read_bytes()
    with pytest.raises(type(error)) as caught:
        npz.write(path, {"w": np.zeros(9)}, progress=fail_in_the_middle)
    assert path.read_bytes() == good
    assert list(tmp_path.iterdir()) == [path]
    if isinstance(error, OSError):
        assert "a.npz is not written (No space left" in str(caught.value)


def test_an_error_of_the_disk_comes_out_of_write(tmp_path, monkeypatch):
    def broken(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match=r"a\.npz is not written \(Input/output error\)"):
        npz.write(tmp_path / "a.npz", some_params())
    assert not list(tmp_path.iterdir())


def test_too_little_space_is_said_before_anything_is_written(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    npz.write(tmp_path / "fits.npz", {"w": np.zeros(1000)})
    with pytest.raises(OSError, match=r"needs 0\.80 GB and .* has 0\.00 GB free; nothing") as error:
        npz.write(tmp_path / "a.npz", {"w": np.broadcast_to(0.0, 10**8)})
    assert error.value.errno == errno.ENOSPC


@pytest.mark.parametrize("value", [np.array([object()]), np.array(["text"]), [1.0, 2.0], None])
def test_only_arrays_of_numbers_are_written(tmp_path, value):
    with pytest.raises(ValueError, match=r"'w' is .*; expected an array of numbers"):
        npz.write(tmp_path / "a.npz", {"w": value})

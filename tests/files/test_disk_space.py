"""Free space, looked at before the first byte."""

import errno
import shutil

import pytest

from paligemma_jax.files import disk_space


def test_a_full_disk_is_an_error_that_names_what_is_needed_and_free(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=2_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    disk_space.require(tmp_path, 2_000_000_000, what="it", remedy="make room")
    message = f"it needs 2.01 GB and {tmp_path} has 2.00 GB free; make room"
    with pytest.raises(OSError, match=message) as error:
        disk_space.require(tmp_path, 2_010_000_000, what="it", remedy="make room")
    assert error.value.errno == errno.ENOSPC


def test_the_disk_of_a_folder_that_is_not_made_yet_is_that_of_the_nearest_above(tmp_path):
    assert disk_space.nearest_existing(tmp_path / "a" / "b") == tmp_path
    assert disk_space.nearest_existing(tmp_path) == tmp_path
    total = shutil.disk_usage(tmp_path).total
    assert 0 <= disk_space.free_bytes(tmp_path / "a" / "b") <= total

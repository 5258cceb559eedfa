"""A file written block by block holds what a plain file would, and errors of the disk come out."""

import errno
import os

import numpy as np
import pytest

from paligemma_jax.files import direct_file

BLOCK = 8192


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(direct_file, "BLOCK_BYTES", BLOCK)


def write(path, pieces):
    with direct_file.DirectFile(path) as file:
        for piece in pieces:
            assert file.write(piece) == len(piece)
        file.sync()


@pytest.mark.parametrize("flag", [direct_file.DIRECT, 0])
@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 70_001])
def test_any_number_of_bytes_in_any_pieces(tmp_path, monkeypatch, size, flag):
    monkeypatch.setattr(direct_file, "DIRECT", flag)
    rng = np.random.default_rng(size)
    data = rng.bytes(size)
    cuts = sorted(rng.integers(0, size + 1, 7).tolist())
    pieces = [data[i:j] for i, j in zip([0, *cuts], [*cuts, size], strict=True)]
    (tmp_path / "a").write_bytes(b"an older file that is longer" * 10_000)
    write(tmp_path / "a", pieces)
    assert (tmp_path / "a").read_bytes() == data


def test_what_was_written_may_be_written_over(tmp_path):
    with direct_file.DirectFile(tmp_path / "a") as file:
        file.write(b"x" * 3 * BLOCK)
        file.write(b"tail")
        for place in (5, BLOCK - 1, 3 * BLOCK + 1):
            file.seek(place)
            file.write(b"Y")
        assert file.tell() == 3 * BLOCK + 2
        assert file.seek(0, os.SEEK_END) == 3 * BLOCK + 4
        file.write(b"end")
        file.sync()
    expected = bytearray(b"x" * 3 * BLOCK + b"tailend")
    for place in (5, BLOCK - 1, 3 * BLOCK + 1):
        expected[place] = ord("Y")
    assert (tmp_path / "a").read_bytes() == expected


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_of_the_disk_comes_out(tmp_path, monkeypatch, code):
    def broken(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", broken)
    with pytest.raises(OSError, match=os.strerror(code)):
        write(tmp_path / "a", [b"x" * BLOCK])
    with pytest.raises(OSError, match=os.strerror(code)):
        write(tmp_path / "a", [b"x" * BLOCK] * 3)


def test_a_disk_that_wants_another_alignment_is_written_the_usual_way(tmp_path, monkeypatch):
    real, refused = os.write, []

    def refuse_once(*args):
        if not refused:
            refused.append(args)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(*args)

    monkeypatch.setattr(os, "write", refuse_once)
    data = bytes(range(256)) * 100
    write(tmp_path / "a", [data])
    assert (tmp_path / "a").read_bytes() == data


def test_a_short_write_is_gone_on_with(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:4096]))
    data = np.random.default_rng(0).bytes(5 * BLOCK + 1)
    write(tmp_path / "a", [data])
    assert (tmp_path / "a").read_bytes() == data

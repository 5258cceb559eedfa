"""A file written block by block holds what a plain file would, and errors of the disk come out."""

import errno
import os

import numpy as np
import pytest

from paligemma_jax.checkpoints import checksums, npz
from paligemma_jax.files import large_files

BLOCK = 8192


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(large_files, "BLOCK_BYTES", BLOCK)


def write(path, pieces):
    with large_files.DirectFile(path) as file:
        for piece in pieces:
            assert file.write(piece) == len(piece)
        file.sync()


@pytest.mark.parametrize("flag", [large_files.DIRECT, 0])
@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 70_001])
def test_any_number_of_bytes_in_any_pieces(tmp_path, monkeypatch, size, flag):
    monkeypatch.setattr(large_files, "DIRECT", flag)
    rng = np.random.default_rng(size)
    data = rng.bytes(size)
    cuts = sorted(rng.integers(0, size + 1, 7).tolist())
    pieces = [data[i:j] for i, j in zip([0, *cuts], [*cuts, size], strict=True)]
    (tmp_path / "a").write_bytes(b"an older file that is longer" * 10_000)
    write(tmp_path / "a", pieces)
    assert (tmp_path / "a").read_bytes() == data


def test_what_was_written_may_be_written_over(tmp_path):
    with large_files.DirectFile(tmp_path / "a") as file:
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


# An npz that was split: read through its parts as one file, wherever an array is cut.

PARAMS = {"a": np.arange(1000.0), "b": np.ones((3, 5), "float16"), "c": np.arange(7)}


def split(path, size, suffixes):
    """Replaces a file by parts of so many bytes, and returns them."""
    data = path.read_bytes()
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    path.unlink()
    parts = []
    for piece, suffix in zip(pieces, suffixes, strict=False):
        parts.append(path.with_name(f"{path.name}.part{suffix}"))
        parts[-1].write_bytes(piece)
    assert len(parts) == len(pieces)
    return parts


NUMBERS = [str(number) for number in range(200)]
LETTERS = [a + b for a in "abcdef" for b in "abcdefghijklmnopqrstuvwxyz"]


@pytest.mark.parametrize("savez", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    ("size", "suffixes"),
    [(4000, NUMBERS), (97, NUMBERS), (97, LETTERS), (500, [f"{n:02d}" for n in range(99)])],
)
def test_parts_are_read_as_the_file_they_were(tmp_path, savez, size, suffixes):
    path = tmp_path / "a.npz"
    savez(path, **PARAMS)
    whole = checksums.of_file(path)
    parts = split(path, size, suffixes)
    for name in (path, parts[0], parts[-1]):
        assert large_files.find_parts(name) == parts
        params = npz.read(name)
        assert all(np.array_equal(params[key], PARAMS[key]) for key in PARAMS)
        assert checksums.of_file(name) == whole
    assert sorted(tmp_path.iterdir()) == sorted(parts)


def test_a_whole_file_goes_before_its_parts(tmp_path):
    path = tmp_path / "a.npz"
    npz.write(path, PARAMS)
    (tmp_path / "a.npz.part0").write_bytes(b"something else")
    (tmp_path / "a.npz.part").write_bytes(b"a download that was cut")
    assert large_files.find_parts(path) == [path]
    assert list(npz.read(path)) == list(PARAMS)


def test_a_missing_part_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", **PARAMS)
    parts = split(tmp_path / "a.npz", 1000, NUMBERS)
    parts[3].unlink()
    with pytest.raises(ValueError, match=r"a\.npz\.part3 is missing; found a\.npz\.part0, "):
        npz.read(tmp_path / "a.npz")


def test_a_missing_last_part_is_asked_about(tmp_path):
    np.savez(tmp_path / "a.npz", **PARAMS)
    parts = split(tmp_path / "a.npz", 4000, NUMBERS)
    parts[-1].unlink()
    with pytest.raises(ValueError, match=r"is a part missing\? Found a\.npz\.part0, a\.npz\.part1"):
        npz.read(parts[0])


def test_a_flipped_bit_in_a_part_is_found(tmp_path):
    np.savez(tmp_path / "a.npz", **PARAMS)
    parts = split(tmp_path / "a.npz", 1000, NUMBERS)
    data = bytearray(parts[3].read_bytes())
    data[500] ^= 1
    parts[3].write_bytes(data)
    with pytest.raises(ValueError, match=r"member 'a\.npy' is damaged"):
        npz.read(parts[0])


def test_bytes_come_from_the_right_part(tmp_path):
    for number, piece in enumerate([b"abc", b"", b"d", b"efgh"]):
        (tmp_path / f"x.part{number}").write_bytes(piece)
    with large_files.open_raw(tmp_path / "x") as file:
        assert file.read() == b"abcdefgh"
        assert file.seek(-3, os.SEEK_END) == file.tell() == 5
        assert file.read(9) == b"fgh" and file.read(1) == b""
        file.seek(2)
        file.seek(1, os.SEEK_CUR)
        assert file.read(1) == b"d"
        with pytest.raises(OSError, match="no byte at -1"):
            file.seek(-1)


@pytest.mark.parametrize(
    ("suffix", "following"), [("0", "1"), ("9", "10"), ("09", "10"), ("aa", "ab"), ("az", "ba")]
)
def test_what_comes_after_a_part(suffix, following):
    assert large_files.suffix_after(suffix) == following

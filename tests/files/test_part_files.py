"""An npz that was split: read through its parts as one file, wherever an array is cut."""

import os

import numpy as np
import pytest

from paligemma_jax.checkpoints import checksums, npz
from paligemma_jax.files import part_files

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
        assert part_files.find(name) == parts
        params = npz.read(name)
        assert all(np.array_equal(params[key], PARAMS[key]) for key in PARAMS)
        assert checksums.of_file(name) == whole
    assert sorted(tmp_path.iterdir()) == sorted(parts)


def test_a_whole_file_goes_before_its_parts(tmp_path):
    path = tmp_path / "a.npz"
    npz.write(path, PARAMS)
    (tmp_path / "a.npz.part0").write_bytes(b"something else")
    (tmp_path / "a.npz.part").write_bytes(b"a download that was cut")
    assert part_files.find(path) == [path]
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
    with part_files.open_raw(tmp_path / "x") as file:
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
    assert part_files.after(suffix) == following

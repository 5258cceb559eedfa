"""One array in a zip: its order, its bytes, and what a damaged file gets."""

import zipfile

import numpy as np
import pytest

from paligemma_jax.checkpoints import npz, zipped_arrays


def patch(path, old, new):
    """Changes bytes inside a file, as a broken disk or download would."""
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))


def test_fortran_order_is_undone(tmp_path):
    array = np.asfortranarray(np.arange(24.0).reshape(2, 3, 4))
    np.savez(tmp_path / "a.npz", w=array)
    np.testing.assert_array_equal(npz.read(tmp_path / "a.npz")["w"], array)
    npz.write(tmp_path / "b.npz", {"w": array, "t": array.T[::2]})
    np.testing.assert_array_equal(npz.read(tmp_path / "b.npz")["w"], array)
    np.testing.assert_array_equal(npz.read(tmp_path / "b.npz")["t"], array.T[::2])


def test_arrays_larger_than_a_chunk_are_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(zipped_arrays, "CHUNK_BYTES", 1000)
    array = np.random.default_rng(0).normal(size=3001).astype("float32")
    npz.write(tmp_path / "a.npz", {"w": array})
    np.savez_compressed(tmp_path / "b.npz", w=array)
    for name in "ab":
        np.testing.assert_array_equal(npz.read(tmp_path / f"{name}.npz")["w"], array)


# Bad files


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"PK\x03\x04 and so on", "a zip that is cut off or damaged at its end"),
        (b"\x93NUMPY\x01\x00", r"a single \.npy array"),
        (b"<html>no</html>", r"not an \.npz: it starts with b'<html>'"),
    ],
)
def test_what_is_no_zip_is_named_for_what_it_is(tmp_path, data, message):
    path = tmp_path / "a.npz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.npz: {message}"):
        npz.read(path)


def test_a_file_cut_off_anywhere_is_an_error(tmp_path):
    npz.write(tmp_path / "a.npz", {"w": np.arange(9.0), "b": np.zeros((0, 2), "float16")})
    data = (tmp_path / "a.npz").read_bytes()
    for size in range(4, len(data), 7):
        (tmp_path / "cut.npz").write_bytes(data[:size])
        with pytest.raises(ValueError, match="cut off"):
            npz.read(tmp_path / "cut.npz")


@pytest.mark.parametrize("savez", [np.savez, np.savez_compressed])
def test_a_flipped_bit_is_found_and_its_array_named(tmp_path, savez):
    path = tmp_path / "a.npz"
    rng = np.random.default_rng(0)
    savez(path, good=rng.normal(size=2000), bad=rng.normal(size=2000))
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        bad = archive.getinfo("bad.npy")
    data[bad.header_offset + bad.compress_size - 20] ^= 1
    path.write_bytes(data)
    assert list(npz.read_header(path).arrays) == ["good", "bad"]
    with pytest.raises(ValueError, match=r"a\.npz: member 'bad\.npy' is damaged"):
        npz.read(path)
    assert list(npz.read(path, names=["good"])) == ["good"]


def test_a_damaged_header_is_found(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, w=np.zeros(2000))
    patch(path, b"(2000,)", b"(1000,)")
    with pytest.raises(ValueError, match="takes 8000 bytes, found 16000"):
        npz.read_header(path)
    patch(path, b"\x93NUMPY", b"\x93NUMPI")
    with pytest.raises(ValueError, match=r"member 'w\.npy' is damaged or no array"):
        npz.read_header(path)


def test_pickled_objects_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", w=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"'w\.npy' holds pickled Python objects"):
        npz.read(tmp_path / "a.npz")


@pytest.mark.parametrize("dtype", ["<U3", ">f4", "complex64", "V3", [("a", "f4")]])
def test_a_type_that_is_no_number_is_an_error(tmp_path, dtype):
    np.savez(tmp_path / "a.npz", w=np.zeros(2, dtype))
    with pytest.raises(ValueError, match=r"'w\.npy' has the dtype .*; expected float32"):
        npz.read(tmp_path / "a.npz")

"""Checksums tell weights apart by any bit, in memory and in files."""

import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from paligemma_jax.checkpoints import checksums, npz

# Of arrays


def digest(array) -> str:
    return checksums.of_arrays({"x": jnp.asarray(array)})["x"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "int8", "bool"])
def test_any_flipped_bit_changes_it(dtype):
    original = np.arange(30).reshape(5, 6).astype(jnp.dtype(dtype))
    size = original.dtype.itemsize
    places = [0] if dtype == "bool" else [0, 8 * size * 17 + 3, 8 * size * 30 - 1]
    found = {digest(original)}
    for bit in places:
        raw = bytearray(original.tobytes())
        raw[bit // 8] ^= 1 << bit % 8
        found.add(digest(np.frombuffer(bytes(raw), original.dtype).reshape(original.shape)))
    assert len(found) == 1 + len(places)


def test_it_is_of_the_bits_and_not_of_the_numbers():
    assert digest(np.float32([0.0])) != digest(np.float32([-0.0]))
    nan = np.float32([np.nan])
    assert digest(nan) == digest(nan)


def test_moved_elements_change_it():
    array = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    assert digest(array) != digest(array[::-1]) != digest(array[:, ::-1])
    assert digest(array) != digest(np.roll(array, 1))


def test_arrays_without_elements_and_scalars_have_one():
    assert digest(np.zeros((0, 3), np.float32)) != digest(np.int32(7)) != digest(np.int32(8))


def test_other_element_sizes_are_refused():
    with pytest.raises(ValueError, match="elements of 1, 2 or 4 bytes"):
        checksums.of_arrays({"x": jnp.zeros(3, jnp.complex64)})


# Of files


def some_params():
    return {
        "llm/w": np.arange(12.0).reshape(3, 4),
        "img/b": np.arange(4, dtype="float16"),
        "step": np.array(7),
    }


def test_whoever_writes_equal_arrays_in_whatever_order_gives_the_same(tmp_path):
    npz.write(tmp_path / "a.npz", some_params())
    expected = checksums.of_file(tmp_path / "a.npz")
    assert len(expected) == 64
    npz.write(tmp_path / "b.npz", some_params(), metadata={"step": 3})
    npz.write(tmp_path / "c.npz", dict(reversed(some_params().items())))
    np.savez(tmp_path / "d.npz", **some_params())
    np.savez_compressed(tmp_path / "e.npz", **some_params())
    assert {checksums.of_file(tmp_path / f"{name}.npz") for name in "bcde"} == {expected}


@pytest.mark.parametrize(
    "change",
    [
        {"step": np.array(8)},
        {"step": np.array(7, "int32")},
        {"llm/w": np.arange(12.0).reshape(4, 3)},
        {"llm/w": np.arange(12.0).reshape(3, 4) + np.eye(3, 4) * 1e-15},
        {"new": np.zeros(0)},
    ],
)
def test_a_value_a_type_a_shape_or_a_name_changes_it(tmp_path, change):
    npz.write(tmp_path / "a.npz", some_params())
    npz.write(tmp_path / "b.npz", some_params() | change)
    assert checksums.of_file(tmp_path / "a.npz") != checksums.of_file(tmp_path / "b.npz")


def test_no_array_is_read(tmp_path, monkeypatch):
    npz.write(tmp_path / "a.npz", some_params())
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("a member is read"))
    checksums.of_file(tmp_path / "a.npz")


def test_what_is_no_npz_is_an_error(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.npz: the file is empty"):
        checksums.of_file(tmp_path / "a.npz")

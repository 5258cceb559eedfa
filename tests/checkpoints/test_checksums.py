"""A digest tells arrays apart by any bit, and by the places of their elements."""

import jax.numpy as jnp
import numpy as np
import pytest

from paligemma_jax.checkpoints import checksums


def digest(array) -> str:
    return checksums.of({"x": jnp.asarray(array)})["x"]


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
        checksums.of({"x": jnp.zeros(3, jnp.complex64)})

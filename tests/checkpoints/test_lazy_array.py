"""Arrays made when they are written, and casts that lose nothing unnoticed."""

import ml_dtypes
import numpy as np
import pytest

from paligemma_jax.checkpoints import lazy_array, npz


def test_npz_writes_an_array_that_is_made_on_the_way(tmp_path):
    array = lazy_array.Deferred((2,), np.dtype("int32"), lambda: np.array([1, 2], "int32"))
    npz.write(tmp_path / "a.npz", {"a": array})
    np.testing.assert_array_equal(npz.read(tmp_path / "a.npz")["a"], [1, 2])


def test_an_array_that_is_not_what_was_promised_is_an_error():
    array = lazy_array.Deferred((3,), np.dtype("int32"), lambda: np.array([1, 2], "int32"))
    with pytest.raises(ValueError, match="promised"):
        np.asarray(array)


def test_casts_are_numpys():
    array = np.random.default_rng(0).normal(size=(3, 5)).astype("float32")
    for dtype in ("float16", ml_dtypes.bfloat16, "float32"):
        found = lazy_array.cast(array.T, dtype, name="a")
        np.testing.assert_array_equal(found, array.T.astype(dtype))
    assert lazy_array.cast(array, "float32", name="a") is array


def test_numbers_that_float16_cannot_hold_are_an_error_and_infinities_are_not():
    with pytest.raises(ValueError, match=r"'a' holds numbers up to 7e\+04, float16 ends at 6.55"):
        lazy_array.cast(np.array([1, 70_000], "float32"), "float16", name="a")
    assert np.isinf(lazy_array.cast(np.array([np.inf], "float32"), "float16", name="a"))

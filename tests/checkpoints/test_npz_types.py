"""Arrays of an npz file in a type that is asked for: cast while they are read."""

import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from paligemma_jax.checkpoints import npz, npz_members

BFLOAT16 = np.dtype(jnp.bfloat16)


@pytest.mark.parametrize("savez", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["float16", BFLOAT16, "float64"])
def test_a_type_that_is_asked_for_is_read_as_numpy_casts(tmp_path, monkeypatch, savez, dtype):
    monkeypatch.setattr(npz_members, "CHUNK_BYTES", 1000)
    values = np.random.default_rng(0).normal(size=(30, 41)).astype("float32")
    arrays = {
        "w": values,
        "turned": np.asfortranarray(values),
        "whole": values[0],
        "none": values[:0],
    }
    savez(tmp_path / "a.npz", **arrays)
    found = npz.read(tmp_path / "a.npz", dtypes=dict.fromkeys(("w", "turned", "none"), dtype))
    wanted = {name: x if name == "whole" else x.astype(dtype) for name, x in arrays.items()}
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_an_array_is_never_there_in_two_types(tmp_path):
    megabyte = 2**20
    npz.write(tmp_path / "a.npz", {f"w{i}": np.zeros(4 * megabyte, "float32") for i in range(3)})
    tracemalloc.start()
    params = npz.read(tmp_path / "a.npz", dtypes=dict.fromkeys(("w0", "w1", "w2"), "float16"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(array.nbytes for array in params.values()) == 24 * megabyte
    # In float32 one of them has 16 MB by itself.
    assert peak < 28 * megabyte


def test_numbers_that_a_type_cannot_hold_are_told_by_name_and_damage_as_damage(tmp_path):
    path = tmp_path / "a.npz"
    npz.write(path, {"small": np.ones(3, "float32"), "large": np.full(500, 7e4, "float32")})
    with pytest.raises(
        ValueError, match=r"'large' holds numbers up to 7e\+04, float16 ends at 6.55"
    ):
        npz.read(path, dtypes={"large": "float16"})
    found = npz.read(path, dtypes={"large": BFLOAT16, "small": "float16"})
    assert found["large"].dtype == BFLOAT16
    content = path.read_bytes()
    start = content.index(np.float32(7e4).tobytes())
    path.write_bytes(content[:start] + b"\xff" + content[start + 1 :])
    with pytest.raises(ValueError, match=r"'large.npy' is damaged"):
        npz.read(path, dtypes={"large": "float16"})

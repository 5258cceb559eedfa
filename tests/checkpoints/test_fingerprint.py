"""Equal weights have equal fingerprints, others have others, and no array is read for it."""

import numpy as np
import pytest

from paligemma_jax.checkpoints import fingerprint, npz, zipped_arrays


def some_params():
    return {
        "llm/w": np.arange(12.0).reshape(3, 4),
        "img/b": np.arange(4, dtype="float16"),
        "step": np.array(7),
    }


def test_whoever_writes_equal_arrays_in_whatever_order_gives_the_same(tmp_path):
    npz.write(tmp_path / "a.npz", some_params())
    expected = fingerprint.of(tmp_path / "a.npz")
    assert len(expected) == 64
    npz.write(tmp_path / "b.npz", some_params(), metadata={"step": 3})
    npz.write(tmp_path / "c.npz", dict(reversed(some_params().items())))
    np.savez(tmp_path / "d.npz", **some_params())
    np.savez_compressed(tmp_path / "e.npz", **some_params())
    assert {fingerprint.of(tmp_path / f"{name}.npz") for name in "bcde"} == {expected}


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
    assert fingerprint.of(tmp_path / "a.npz") != fingerprint.of(tmp_path / "b.npz")


def test_no_array_is_read(tmp_path, monkeypatch):
    npz.write(tmp_path / "a.npz", some_params())
    monkeypatch.setattr(zipped_arrays, "describe", lambda *_: pytest.fail("a header is read"))
    monkeypatch.setattr(zipped_arrays, "read_array", lambda *_: pytest.fail("an array is read"))
    fingerprint.of(tmp_path / "a.npz")


def test_what_is_no_npz_is_an_error(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.npz: the file is empty"):
        fingerprint.of(tmp_path / "a.npz")

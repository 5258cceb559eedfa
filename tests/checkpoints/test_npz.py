"""npz in and out: against numpy both ways, big_vision's own file, bad files, failed writes."""

import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tracemalloc
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest

from paligemma_jax.checkpoints import npz, npz_members

REFERENCE = pathlib.Path(__file__).parents[1] / "reference"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def some_params():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 4, 5)).astype("float32")
    return {
        "llm/layers/mlp/linear": values.astype(BFLOAT16),
        "llm/final_norm/scale": values[0].astype("float16"),
        "img/embedding/kernel": values,
        "img/head/bias": np.arange(4, dtype="int8"),
        "img/mask": np.array([True, False]),
        "step": np.array(7, "int32"),
        "empty": np.zeros((0, 3), "float32"),
    }


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


# Reading and writing


@pytest.mark.parametrize("savez", [np.savez, np.savez_compressed])
def test_reads_what_numpy_writes(tmp_path, savez):
    savez(tmp_path / "a.npz", **some_params())
    assert_same(npz.read(tmp_path / "a.npz"), some_params())


def test_numpy_reads_what_is_written_and_finds_what_savez_would_have_stored(tmp_path):
    npz.write(tmp_path / "ours.npz", some_params(), metadata={"res": 224})
    np.savez(tmp_path / "theirs.npz", **some_params())
    with np.load(tmp_path / "ours.npz") as ours, np.load(tmp_path / "theirs.npz") as theirs:
        assert_same(dict(ours), dict(theirs))
        assert ours["llm/layers/mlp/linear"].dtype == np.dtype("V2")


def test_every_array_and_its_type_come_back(tmp_path):
    npz.write(tmp_path / "a.npz", some_params())
    assert_same(npz.read(tmp_path / "a.npz"), some_params())


def test_big_visions_bfloat16_file_is_read_as_big_vision_reads_it():
    expected = json.loads((REFERENCE / "ckpt_pg1.bf16.json").read_text())["stats_f32"]
    params = npz.read(REFERENCE / "ckpt_pg1.bf16.npz")
    assert set(params) == set(expected)
    for name, (total, norm) in expected.items():
        assert params[name].dtype == BFLOAT16
        values = params[name].astype("float64")
        np.testing.assert_allclose(values.sum(), total, rtol=1e-9, atol=1e-9, err_msg=name)
        np.testing.assert_allclose(np.linalg.norm(values), norm, rtol=1e-9, err_msg=name)


def test_the_prefix_params_is_dropped(tmp_path):
    prefixed = {f"params/{name}": array for name, array in some_params().items()}
    npz.write(tmp_path / "a.npz", prefixed)
    assert_same(npz.read(tmp_path / "a.npz"), some_params())
    assert list(npz.read_header(tmp_path / "a.npz").arrays) == list(some_params())


def test_names_select_what_is_read(tmp_path):
    npz.write(tmp_path / "a.npz", some_params())
    assert list(npz.read(tmp_path / "a.npz", names=["step", "empty"])) == ["step", "empty"]


def test_transform_then_place_see_each_array(tmp_path):
    npz.write(tmp_path / "a.npz", some_params())
    seen = []

    def to_float32(name, array):
        seen.append(name)
        return array.astype("float32")

    params = npz.read(
        tmp_path / "a.npz", transform=to_float32, place=lambda _, array: jax.device_put(array)
    )
    assert seen == list(some_params())
    assert {array.dtype for array in params.values()} == {np.dtype("float32")}
    assert all(isinstance(array, jax.Array) for array in params.values())


def test_arrays_are_cast_on_the_way_out(tmp_path):
    w = np.arange(3, dtype="float32")
    npz.write(tmp_path / "a.npz", {"w": w, "b": w}, dtypes={"w": "bfloat16"})
    params = npz.read(tmp_path / "a.npz")
    assert params["w"].dtype == BFLOAT16 and params["b"].dtype == "float32"
    with pytest.raises(ValueError, match=r"not there: \['v'\]"):
        npz.write(tmp_path / "a.npz", {"w": w}, dtypes={"v": "bfloat16"})


def test_progress_counts_bytes_up_to_the_total(tmp_path):
    params = {"a": np.zeros(10, "float32"), "b": np.zeros(5, BFLOAT16)}
    written, read = [], []
    npz.write(tmp_path / "a.npz", params, progress=lambda *counts: written.append(counts))
    npz.read(tmp_path / "a.npz", progress=lambda *counts: read.append(counts))
    assert written == read == [(40, 50), (50, 50)]


@pytest.mark.parametrize("place", [None, lambda _, array: jax.device_put(array)])
@pytest.mark.parametrize("savez", [np.savez, np.savez_compressed])
def test_a_loaded_array_does_not_share_memory_with_the_file(tmp_path, savez, place):
    path = tmp_path / "a.npz"
    savez(path, w=np.ones(4096, "float32"))
    params = npz.read(path, place=place)
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))
    np.testing.assert_array_equal(params["w"], np.ones(4096, "float32"))


def test_reading_needs_one_array_beside_what_stays(tmp_path):
    megabyte = 2**20
    npz.write(tmp_path / "a.npz", {f"w{i}": np.zeros(megabyte, "int8") for i in range(8)})
    tracemalloc.start()
    npz.read(tmp_path / "a.npz", transform=lambda _, array: array[:1].copy())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * megabyte


SHARDED = """
import sys, tracemalloc
import numpy as np
from paligemma_jax.checkpoints import npz
from paligemma_jax.params import sharding

path = sys.argv[1]
values = np.arange(2**20, dtype="float32").reshape(1024, 1024)
npz.write(path, {"w": values})
mesh = sharding.make_mesh([("data", -1)])
where = sharding.shardings(npz.read_header(path).arrays, [("w", (None, "data"))], mesh)
placed = npz.read(path, place=lambda name, array: sharding.place(name, array, where[name]))
assert {shard.data.shape for shard in placed["w"].addressable_shards} == {(1024, 256)}
tracemalloc.start()
npz.write(path, placed)
kept, peak = tracemalloc.get_traced_memory()
assert kept < values.nbytes / 2 < values.nbytes <= peak < 1.5 * values.nbytes, (kept, peak)
np.testing.assert_array_equal(npz.read(path)["w"], values)
"""


def test_an_array_goes_to_its_shards_and_back_and_leaves_no_copy_on_the_host(tmp_path):
    four = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        [sys.executable, "-c", SHARDED, str(tmp_path / "a.npz")],
        env=os.environ | four,
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


# Metadata


def test_metadata_comes_back_and_stands_in_the_comment(tmp_path):
    metadata = {"variant": "paligemma2-3b", "res": 448, "final_logits_softcap": None}
    npz.write(tmp_path / "a.npz", some_params(), metadata=metadata)
    header = npz.read_header(tmp_path / "a.npz")
    assert header.metadata == metadata | {"dtypes": {"llm/layers/mlp/linear": "bfloat16"}}
    assert header.arrays["llm/layers/mlp/linear"] == jax.ShapeDtypeStruct((3, 4, 5), BFLOAT16)
    assert {name: leaf.shape for name, leaf in header.arrays.items()} == {
        name: array.shape for name, array in some_params().items()
    }


def test_opaque_bytes_are_what_the_metadata_says(tmp_path):
    array = np.arange(6).astype(ml_dtypes.float8_e4m3fn)
    npz.write(tmp_path / "a.npz", {"w": array})
    assert_same(npz.read(tmp_path / "a.npz"), {"w": array})


@pytest.mark.parametrize("comment", [b"", b"from elsewhere", b"[1]", b'{"dtypes": 3}', b"\xff"])
def test_a_comment_from_elsewhere_does_no_harm(tmp_path, comment):
    np.savez(tmp_path / "a.npz", w=np.ones(2, BFLOAT16))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.comment = comment
    assert_same(npz.read(tmp_path / "a.npz"), {"w": np.ones(2, BFLOAT16)})


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"a": object()}, "must be JSON"),
        ({"a": float("nan")}, "must be JSON"),
        ({"a": "x" * 70_000}, "a zip's comment holds 65535"),
        ({"dtypes": {}}, r"filled in by write\(\)"),
    ],
)
def test_metadata_that_cannot_be_stored_is_an_error(tmp_path, metadata, message):
    with pytest.raises(ValueError, match=message):
        npz.write(tmp_path / "a.npz", some_params(), metadata=metadata)


def test_equal_arrays_give_equal_files(tmp_path):
    for name in ("a.npz", "b.npz"):
        npz.write(tmp_path / name, some_params(), metadata={"res": 224})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


# Wrong names


def test_a_zip_of_something_else_is_an_error(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    with pytest.raises(ValueError, match=r"member 'archive/data\.pkl' is no array"):
        npz.read(tmp_path / "a.npz")


def test_names_with_and_without_the_prefix_are_an_error(tmp_path):
    npz.write(tmp_path / "a.npz", {"params/w": np.ones(1), "opt/w": np.ones(1)})
    with pytest.raises(ValueError, match=r"1 names start with 'params/' and 1 do not \(opt/w\)"):
        npz.read(tmp_path / "a.npz")


def test_missing_arrays_are_counted_and_near_misses_shown(tmp_path):
    npz.write(tmp_path / "a.npz", {"llm/attn/q_einsum/w": np.ones(1), "llm/b": np.ones(1)})
    with pytest.raises(ValueError, match="1 of 2 arrays missing") as error:
        npz.read(tmp_path / "a.npz", names=["llm/b", "llm/attn/q_einsum/v"])
    assert "its base" in str(error.value)
    assert "llm/attn/q_einsum/v (there is llm/attn/q_einsum/w)" in str(error.value)


def test_a_file_with_none_of_the_names_says_what_it_holds(tmp_path):
    npz.write(tmp_path / "a.npz", {f"decoder/{i}": np.ones(1) for i in range(6)})
    with pytest.raises(ValueError, match=r"none of the 2 arrays .*holds 6 others \(decoder/0"):
        npz.read(tmp_path / "a.npz", names=["img/a", "img/b"])


# One array in a zip


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
    monkeypatch.setattr(npz, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(npz_members, "CHUNK_BYTES", 1000)
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


# Writes that fail, are killed or find too little space


KILLED = """
import os, signal, sys
import numpy as np
from paligemma_jax.checkpoints import npz

def kill(done, total):
    if done == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

npz.write(sys.argv[1], {name: np.zeros(100_000, "int8") for name in "abc"}, progress=kill)
"""


@pytest.mark.parametrize("done", [100_000, 300_000])
def test_a_killed_write_leaves_the_good_file_and_the_next_one_succeeds(tmp_path, done):
    path = tmp_path / "a.npz"
    npz.write(path, some_params())
    good = path.read_bytes()
    command = [sys.executable, "-c", KILLED, str(path), str(done)]
    ran = subprocess.run(command, cwd=pathlib.Path(__file__).parents[2], check=False)
    assert ran.returncode == -signal.SIGKILL
    assert path.read_bytes() == good
    npz.write(path, {"w": np.zeros(9)})
    assert list(npz.read(path)) == ["w"] and list(tmp_path.iterdir()) == [path]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("error", [Killed(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_failed_write_leaves_the_good_file_and_nothing_else(tmp_path, error):
    def fail_in_the_middle(done, total):
        raise error

    path = tmp_path / "a.npz"
    npz.write(path, some_params())
    good = path.read_bytes()
    with pytest.raises(type(error)) as caught:
        npz.write(path, {"w": np.zeros(9)}, progress=fail_in_the_middle)
    assert path.read_bytes() == good
    assert list(tmp_path.iterdir()) == [path]
    if isinstance(error, OSError):
        assert "a.npz is not written: its disk is full (No space left" in str(caught.value)
        assert str(caught.value).endswith("; what was there is unchanged")


def test_an_error_of_the_disk_comes_out_of_write(tmp_path, monkeypatch):
    def broken(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(
        OSError, match=r"a\.npz is not written: its disk failed \(Input/output error\)"
    ):
        npz.write(tmp_path / "a.npz", some_params())
    assert not list(tmp_path.iterdir())


def test_too_little_space_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    npz.write(tmp_path / "fits.npz", {"w": np.zeros(1000)})
    with pytest.raises(
        OSError, match=r"needs 0\.80 GB and .* has 100\.0 kB free; nothing"
    ) as error:
        npz.write(tmp_path / "a.npz", {"w": np.broadcast_to(0.0, 10**8)})
    assert error.value.errno == errno.ENOSPC


@pytest.mark.parametrize("value", [np.array([object()]), np.array(["text"]), [1.0, 2.0], None])
def test_only_arrays_of_numbers_are_written(tmp_path, value):
    with pytest.raises(ValueError, match=r"'w' is .*; expected an array of numbers"):
        npz.write(tmp_path / "a.npz", {"w": value})

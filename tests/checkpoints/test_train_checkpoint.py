"""Checkpoints: written beside the work, kept as asked, and never taken for good when damaged."""

import logging
import pathlib
import resource
import shutil
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma_jax.checkpoints import train_checkpoint
from paligemma_jax.files import atomic

GROUPS = ("trainable", "optimizer")


def make_groups(seed: int = 0, size: int = 40) -> dict[str, dict[str, jax.Array]]:
    keys = jax.random.split(jax.random.key(seed), 2)
    return {
        "trainable": {
            "llm/a/w": jax.random.normal(keys[0], (3, size)),
            "llm/a": jnp.full((2,), seed, jnp.float32),
        },
        "optimizer": {
            "0/mu/llm/a/w": jax.random.normal(keys[1], (3, size)).astype(jnp.bfloat16),
            "1/count": jnp.int32(seed),
        },
    }


def like(groups):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), groups
    )


def write(folder, steps, **settings) -> None:
    """Saves a checkpoint of each step, with the values that `settings` may give."""
    values = settings.pop("values", {})
    writer = train_checkpoint.Writer(folder, GROUPS, **{"keep_last": 9, **settings})
    for step in steps:
        writer.save(step, make_groups(step), {"about": "a test"}, value=values.get(step))
    writer.close()


def names(folder) -> list[str]:
    return [path.name for path in train_checkpoint.steps(folder)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("run_state") / "checkpoints"
    write(folder, [200, 1000])
    return folder


def test_what_was_saved_comes_back_bit_for_bit(saved):
    assert names(saved) == ["001000", "000200"]
    assert train_checkpoint.read_metadata(saved / "000200")["about"] == "a test"
    groups = make_groups(200)
    found = train_checkpoint.read(saved / "000200", like(groups))
    jax.tree.map(np.testing.assert_array_equal, found, groups)
    assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, groups)


def test_a_group_can_be_read_by_itself(saved):
    trainable = like(make_groups())["trainable"]
    assert train_checkpoint.read(saved / "000200", {"trainable": trainable}).keys() == {"trainable"}


def test_other_arrays_than_expected_are_an_error_that_names_them(saved):
    expected = like(make_groups(size=41))
    del expected["trainable"]["llm/a"]
    message = (
        r"(?s)3 arrays differ.*optimizer/0/mu/llm/a/w: bfloat16\[3, 40\] there, bfloat16\[3, 41\]"
        r".*trainable/llm/a: float32\[2\] there, none here"
    )
    with pytest.raises(ValueError, match=message):
        train_checkpoint.read(saved / "000200", expected)


def test_saving_goes_on_beside_the_work_which_may_use_the_memory_again(tmp_path):
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x + 1, tree), donate_argnums=0)
    arrays = {str(n): jax.random.normal(jax.random.key(n), (1000, 4000)) for n in range(2)}
    writer = train_checkpoint.Writer(tmp_path, ("trainable",), keep_last=1)
    for step in (1, 2, 3):
        writer.save(step, {"trainable": arrays}, {})
        assert names(tmp_path) == [f"{step - 1:06d}"][: step - 1]  # not there yet: it goes on
        expected = {name: np.array(array) for name, array in arrays.items()}
        for _ in range(5):
            arrays = overwrite(arrays)
        jax.block_until_ready(arrays)
    writer.close()
    found = train_checkpoint.read(tmp_path / "000003", {"trainable": like(arrays)})["trainable"]
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        (dict(keep_last=2), [4, 5]),
        (dict(keep_last=1, keep_every=2), [2, 4, 5]),
        (dict(keep_last=1, keep_best="max"), [2, 5]),
        (dict(keep_last=1, keep_best="min"), [1, 5]),
    ],
)
def test_the_newest_the_chosen_and_the_best_stay(tmp_path, settings, kept):
    values = {1: 0.1, 2: 0.9, 3: 0.9, 4: 0.1}
    write(tmp_path, [1, 2, 3], values=values, **settings)
    write(tmp_path, [4, 5], values=values, **settings)  # the values of the first three are known
    assert [int(name) for name in reversed(names(tmp_path))] == kept


def test_a_step_is_saved_once(tmp_path):
    write(tmp_path, [3, 3])
    write(tmp_path, [3])
    assert names(tmp_path) == ["000003"]


def test_what_a_killed_run_left_half_written_is_none_and_is_removed(tmp_path):
    left = tmp_path / "000007.orbax-checkpoint-tmp" / "trainable"
    left.mkdir(parents=True)
    assert names(tmp_path) == []
    write(tmp_path, [7])
    assert [path.name for path in tmp_path.iterdir()] == ["000007"]


def damage(path: pathlib.Path):
    """Yields (what was done, path) for a checkpoint, damaged in one way after the other."""
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        content = file.read_bytes()
        if len(content) > 1000 and "d" in file.parts:  # what holds arrays
            for place in range(40, len(content), len(content) // 20):
                flipped = bytearray(content)
                flipped[place] ^= 1
                file.write_bytes(flipped)
                yield f"bit of byte {place} flipped in {file.relative_to(path)}"
        if file.parent != path:
            for rest in (b"", content[: len(content) // 2]):
                file.write_bytes(rest)
                yield f"{len(rest)} of {len(content)} bytes left of {file.relative_to(path)}"
            file.unlink()
            yield f"{file.relative_to(path)} removed"
        file.write_bytes(content)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_any_damage_is_found(tmp_path):
    big = {"trainable": {"w": jax.random.normal(jax.random.key(0), (64, 64))}}
    writer = train_checkpoint.Writer(tmp_path, big, keep_last=1)
    writer.save(5, big, {})
    writer.close()
    expected = np.asarray(big["trainable"]["w"])
    noticed = 0
    for what in damage(tmp_path / "000005"):
        try:
            found = train_checkpoint.read(tmp_path / "000005", like(big))["trainable"]["w"]
        except train_checkpoint.Damaged:
            noticed += 1
        else:  # a byte between the arrays, which nobody reads
            assert "flipped" in what, what
            np.testing.assert_array_equal(found, expected, err_msg=what)
    assert noticed > 20


def test_changed_metadata_is_damage(tmp_path):
    write(tmp_path, [5])
    path = tmp_path / "000005" / "metadata" / "metadata"
    path.write_text(path.read_text().replace("a test", "b test"))
    with pytest.raises(train_checkpoint.Damaged, match="metadata was changed"):
        train_checkpoint.read_metadata(tmp_path / "000005")
    (tmp_path / "000005").rename(tmp_path / "000006")
    path = tmp_path / "000006" / "metadata" / "metadata"
    path.write_text(path.read_text().replace("b test", "a test"))
    with pytest.raises(train_checkpoint.Damaged, match="it says that it is of step 5"):
        train_checkpoint.read_metadata(tmp_path / "000006")


def test_too_little_space_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    write(tmp_path, [1])

    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(OSError, match=r"000002 needs .* has 1.0 kB free; nothing was written"):
        write(tmp_path, [2])
    assert names(tmp_path) == ["000001"]


def test_disk_that_is_full_leaves_the_last_good_checkpoint_and_a_clear_error(tmp_path, monkeypatch):
    write(tmp_path, [1])
    monkeypatch.setattr(atomic, "require_space", lambda *_, **__: None)  # it fills up meanwhile
    big = {"trainable": {"w": jnp.arange(100_000.0)}}
    writer = train_checkpoint.Writer(tmp_path, big, keep_last=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        writer.save(2, big, {})
        with pytest.raises(
            OSError, match=r"000002 is not written: .*; the last good one is 000001"
        ):
            writer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["000001"]
    train_checkpoint.read(tmp_path / "000001", like(make_groups()))
    write(tmp_path, [2])  # there is room again
    assert names(tmp_path) == ["000002", "000001"]


def test_checkpoints_that_a_killed_run_had_no_time_to_remove_are_removed_by_the_next_writer(
    tmp_path,
):
    write(tmp_path, [1, 2, 3, 4, 5], values={1: 0.9})
    train_checkpoint.Writer(tmp_path, GROUPS, keep_last=1, keep_every=3, keep_best="max").close()
    assert names(tmp_path) == ["000005", "000003", "000001"]


def test_a_save_that_cannot_make_its_folder_fails_at_once_and_once(tmp_path, capfd):
    writer = train_checkpoint.Writer(tmp_path / "run", GROUPS, keep_last=1)
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").touch()  # nothing can be made below a file
    start = time.monotonic()
    with pytest.raises(OSError, match=r"000003 is not written: .*; there is none before it"):
        writer.save(3, make_groups(), {})
    writer.close()
    assert time.monotonic() - start < 20
    assert "Traceback" not in capfd.readouterr().err


def test_an_error_within_the_texts_of_the_storage_is_said_in_words(tmp_path):
    inner = "Error writing local file: Failed to write: No space left on device"
    error = train_checkpoint._explain(ValueError(f"{inner} [os_error_code='28']"), tmp_path / "7")
    assert str(error).startswith(f"{tmp_path / '7'} is not written: its disk is full")
    other = train_checkpoint._explain(ValueError("a: b: c: d"), tmp_path / "7")
    assert str(other) == f"{tmp_path / '7'} is not written: c: d"


def test_lines_and_tracebacks_of_what_is_raised_anyway_are_left_out(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    train_checkpoint.Writer(tmp_path, GROUPS, keep_last=1).close()
    for text in ("Event loop is closed", "another"):
        sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError(text)))
    assert [str(one.exc_value) for one in shown] == ["another"]
    for path, is_kept in (("a/orbax/b.py", False), ("a/b.py", True)):
        record = logging.LogRecord("absl", logging.ERROR, path, 1, "text", None, None)
        assert bool(logging.getLogger("absl").filter(record)) == is_kept

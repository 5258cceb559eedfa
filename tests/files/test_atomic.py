import errno
import json
import shutil

import filelock
import numpy as np
import pytest

from paligemma_jax.files import atomic


def test_json_has_null_for_what_is_no_number(tmp_path):
    value = {"map": float("nan"), "list": [np.float32(0.5), np.int64(3), float("inf")], "text": "é"}
    atomic.write_json(tmp_path / "deep" / "metrics.json", value)
    written = (tmp_path / "deep" / "metrics.json").read_text(encoding="utf-8")
    assert json.loads(written) == {"map": None, "list": [0.5, 3, None], "text": "é"}


def test_rows_are_one_line_each(tmp_path):
    path = tmp_path / "predictions.jsonl"
    atomic.write_jsonl(path, [{"prediction": "a\nb"}, {"logp": float("-inf")}])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"prediction": "a\nb"},
        {"logp": None},
    ]


def test_half_a_surrogate_pair_is_written_as_json_spells_it(tmp_path):
    atomic.write_text(tmp_path / "a.txt", "a\ud800b")
    assert (tmp_path / "a.txt").read_text() == r"a\ud800b"
    atomic.write_json(tmp_path / "a.json", {"a": "\ud800"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": "\ud800"}


def test_a_file_is_replaced_whole(tmp_path):
    atomic.write_text(tmp_path / "a.txt", "old and long")
    atomic.write_text(tmp_path / "a.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "new"


def contents(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def write_half(make, target):
    with make(target) as unfinished:
        (unfinished / "a" if unfinished.is_dir() else unfinished).write_text("half")
        raise ZeroDivisionError


@pytest.mark.parametrize("make", [atomic.new_file, atomic.new_folder, atomic.files_of_folder])
def test_what_fails_halfway_changes_nothing_and_leaves_nothing(tmp_path, make):
    for target in (tmp_path / "new", tmp_path / "old"):
        if target.name == "old":
            if make is atomic.new_file:
                target.write_text("before")
            else:
                target.mkdir()
                (target / "a").write_text("before")
        before = contents(tmp_path)
        with pytest.raises(ZeroDivisionError):
            write_half(make, target)
        assert contents(tmp_path) == before
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
            {name.split("/")[0] for name in before}
        )


def test_a_file_can_be_written_under_a_name_of_the_process(tmp_path):
    with atomic.new_file(tmp_path / "a", temporary=tmp_path / "a-17") as unfinished:
        assert unfinished.name == "a-17"
        unfinished.write_text("new")
    assert contents(tmp_path) == {"a": "new"}


def test_a_new_folder_replaces_all_of_the_old_one(tmp_path):
    atomic.write_text(tmp_path / "out" / "old", "old")
    with atomic.new_folder(tmp_path / "out") as made:
        (made / "new").write_text("new")
    assert contents(tmp_path) == {"out/new": "new"}
    # Readable as any folder that was made here.
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_files_move_into_a_folder_where_others_stay_except_stale_ones(tmp_path):
    for name in ("kept", "replaced", "shard-1"):
        atomic.write_text(tmp_path / "out" / name, "old")
    with atomic.files_of_folder(tmp_path / "out", stale=["shard-*", "index"]) as made:
        (made / "replaced").write_text("new")
    assert contents(tmp_path) == {"out/kept": "old", "out/replaced": "new"}


def test_a_full_disk_is_an_error_that_names_what_is_needed_and_free(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=2_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    atomic.require_space(tmp_path, 2_000_000_000, what="it", remedy="make room")
    message = f"it needs 2.01 GB and {tmp_path} has 2.00 GB free; make room"
    with pytest.raises(OSError, match=message) as error:
        atomic.require_space(tmp_path, 2_010_000_000, what="it", remedy="make room")
    assert error.value.errno == errno.ENOSPC


def test_the_disk_of_a_folder_that_is_not_made_yet_is_that_of_the_nearest_above(tmp_path):
    assert atomic.nearest_existing(tmp_path / "a" / "b") == tmp_path
    assert atomic.nearest_existing(tmp_path) == tmp_path
    total = shutil.disk_usage(tmp_path).total
    assert 0 <= atomic.free_bytes(tmp_path / "a" / "b") <= total


# One process at a time.


def test_waiting_is_reported_at_once_and_ends_when_the_lock_is_free(tmp_path):
    other, calls = filelock.FileLock(tmp_path / "lock", thread_local=False), []

    def waiting():
        calls.append("waiting")
        other.release()

    other.acquire()
    with atomic.exclusive(tmp_path / "lock", waiting=waiting):
        assert calls == ["waiting"]
        with pytest.raises(filelock.Timeout):
            other.acquire(timeout=0)


def test_a_lock_is_free_again_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic.exclusive(tmp_path / "lock"):
        raise ZeroDivisionError
    with atomic.exclusive(tmp_path / "lock", waiting=lambda: pytest.fail("it is still locked")):
        pass

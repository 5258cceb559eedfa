import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import types

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


def refuse(number):
    """Returns a stand-in for any call to the system, which the disk answers with an error."""

    def call(*_, **__):
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize(
    ("number", "why", "remedy"),
    [
        (errno.ENOSPC, "its disk is full", "make room there"),
        (errno.EDQUOT, "your quota", "make room there"),
        (errno.EMFILE, "too many files open", "ulimit -n"),
        (errno.EROFS, "read-only", "choose another folder"),
    ],
)
def test_what_a_disk_refuses_is_said_in_words_with_the_file_and_a_remedy(
    tmp_path, monkeypatch, number, why, remedy
):
    atomic.write_text(tmp_path / "a.json", "before")
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "write_bytes", refuse(number))
        with pytest.raises(atomic.WriteError) as caught:
            atomic.write_text(tmp_path / "a.json", "after")
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'a.json'} is not written: ") and why in text
    assert remedy in text and caught.value.errno == number
    assert contents(tmp_path) == {"a.json": "before"}


def test_a_disk_without_inodes_is_told_from_a_full_one(tmp_path, monkeypatch):
    for free, why in ((0, "no room for one more file"), (9, "its disk is full")):
        monkeypatch.setattr(
            os, "statvfs", lambda _, free=free: types.SimpleNamespace(f_files=9, f_favail=free)
        )
        error = atomic.explain(OSError(errno.ENOSPC, ""), tmp_path / "a")
        assert why in str(error)


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(IsADirectoryError) as caught, atomic.writing(tmp_path):
        tmp_path.write_text("")
    assert not isinstance(caught.value, atomic.WriteError)


def test_a_folder_that_is_gone_is_named_as_the_reason(tmp_path):
    (tmp_path / "run").mkdir()
    making = atomic.new_file(tmp_path / "run" / "a")
    making.__enter__()
    (tmp_path / "run").rmdir()
    with pytest.raises(atomic.WriteError, match=r"a is not written: its folder .*is not there"):
        making.__exit__(None, None, None)


def test_device_that_is_always_full_is_named():
    file = atomic.GrowingFile("/dev/full")
    with pytest.raises(atomic.WriteError, match="/dev/full is not written: its disk is full"):
        file.append(b"row\n")
    file.close()


def test_a_piece_that_is_written_in_part_is_completed_or_taken_back(tmp_path, monkeypatch):
    file = atomic.GrowingFile(tmp_path / "rows")
    file.append(b"first\n")

    class Nearly:
        """A file on a disk that takes three bytes at a time, and so many times only."""

        def __init__(self, calls):
            self.calls = calls

        def write(self, piece):
            self.calls -= 1
            if self.calls < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return inner.write(piece[:3])

        def __getattr__(self, name):
            return getattr(inner, name)

    inner = file._file
    monkeypatch.setattr(file, "_file", Nearly(2))
    file.append(b"second")
    monkeypatch.setattr(file, "_file", Nearly(1))
    with pytest.raises(atomic.WriteError, match="rows is not written: its disk is full"):
        file.append(b"third")
    inner.close()
    assert (tmp_path / "rows").read_bytes() == b"first\nsecond"


@pytest.mark.parametrize("becomes", ["removed", "moved", "replaced"])
def test_growth_of_a_file_that_is_not_there_any_more_is_an_error(tmp_path, becomes):
    file = atomic.GrowingFile(tmp_path / "rows")
    if becomes == "removed":
        (tmp_path / "rows").unlink()
    else:
        (tmp_path / "rows").rename(tmp_path / "other")
    if becomes == "replaced":
        (tmp_path / "rows").write_text("")
    with pytest.raises(atomic.WriteError, match="rows is not there any more"):
        file.append(b"lost")
    file.close()
    assert not any(contents(tmp_path).values())


def test_folder_that_a_killed_process_left_is_removed_by_the_next_one_of_its_name(tmp_path):
    program = (
        "import os, signal\nfrom paligemma_jax.files import atomic\n"
        f"making = atomic.new_folder({str(tmp_path / 'out')!r})\n"
        "(making.__enter__() / 'half').touch()\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    with atomic.new_folder(tmp_path / "other"):
        assert left.exists()  # of another name
    with atomic.new_folder(tmp_path / "out") as first:
        assert not left.exists()
        with atomic.files_of_folder(tmp_path / "out"):
            assert first.exists()  # its process lives
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_folder_that_was_left_before_it_was_locked_is_removed_too(tmp_path):
    (tmp_path / "out.12345678.tmp").mkdir()
    (tmp_path / "out.87654321.tmp").mkdir()
    (tmp_path / "out.87654321.tmp/half").touch()  # of a process on a disk without locks
    with atomic.new_folder(tmp_path / "out"):
        assert not (tmp_path / "out.12345678.tmp").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.87654321.tmp"]


def test_folder_that_another_process_removed_before_it_was_locked_is_made_again(
    tmp_path, monkeypatch
):
    mkdtemp = atomic.tempfile.mkdtemp

    def make(*words, **options):
        monkeypatch.setattr(atomic.tempfile, "mkdtemp", mkdtemp)
        made = mkdtemp(*words, **options)
        pathlib.Path(made).rmdir()
        return made

    monkeypatch.setattr(atomic.tempfile, "mkdtemp", make)
    with atomic.new_folder(tmp_path / "out") as folder:
        (folder / "file").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "out"]

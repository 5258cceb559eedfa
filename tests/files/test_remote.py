"""Folders at addresses: against fsspec's memory, and stores that fail, lose, tear or are slow."""

import contextlib
import json
import logging
import os
import pathlib
import socket
import threading
import time

import fsspec
import fsspec.implementations.memory
import pytest

from paligemma_jax import train
from paligemma_jax.files import mirror, remote, run_folder

ADDRESS = "memory://bucket/run"


@pytest.fixture(autouse=True)
def store(monkeypatch, tmp_path):
    """An empty store in memory, which is looked at often; a cache of the test's own."""
    monkeypatch.setenv(remote.CACHE_ENV, str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "WAIT_S", 0.001)
    for name, value in {"LOOK_S": 0.02, "BEAT_S": 0.05, "STALE_S": 0.4, "AT_END_S": 0.3}.items():
        monkeypatch.setattr(mirror, name, value)
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


@pytest.fixture
def another_machine(monkeypatch, tmp_path):
    """Returns a function that goes to another machine: no cache, another name."""

    def move(name: str = "elsewhere") -> None:
        monkeypatch.setenv(remote.CACHE_ENV, str(tmp_path / name))
        monkeypatch.setattr(socket, "gethostname", lambda: name)

    return move


def there(store) -> dict[str, bytes]:
    files = {
        path.removeprefix("/bucket/run/"): store.cat_file(path) for path in store.find("/bucket")
    }
    return {k: v for k, v in files.items() if k not in (remote.MANIFEST, remote.LOCK)}


def wait_for(is_so, timeout_s=5.0):
    end = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.01)


def test_what_is_written_goes_up_while_the_run_goes_on_and_is_there_at_the_end(store):
    with mirror.mirrored(ADDRESS) as folder:
        assert folder.name == "run"
        (folder / "metrics.jsonl").write_text("1\n")
        wait_for(lambda: there(store) == {"metrics.jsonl": b"1\n"})
        (folder / "metrics.jsonl").write_text("1\n2\n")
        (folder / "checkpoints/000001").mkdir(parents=True)
        (folder / "checkpoints/000001/a").write_bytes(b"x" * 9)
        (folder / "unfinished.tmp").write_text("no")
        (folder / "in-use.lock").write_text("no")
    assert there(store) == {"metrics.jsonl": b"1\n2\n", "checkpoints/000001/a": b"x" * 9}
    assert not store.exists(f"/bucket/run/{remote.LOCK}")


def test_another_machine_goes_on_with_what_is_there(store, another_machine):
    with mirror.mirrored(ADDRESS) as folder:
        (folder / "metrics.jsonl").write_text("1\n")
        (folder / "checkpoints/000001").mkdir(parents=True)
        (folder / "checkpoints/000001/a").write_bytes(b"x")
    another_machine()
    with mirror.mirrored(ADDRESS) as folder:
        assert (folder / "metrics.jsonl").read_text() == "1\n"
        (folder / "checkpoints/000001/a").unlink()
        (folder / "checkpoints/000002").mkdir(parents=True)
        (folder / "checkpoints/000002/a").write_bytes(b"y")
    assert there(store) == {"metrics.jsonl": b"1\n", "checkpoints/000002/a": b"y"}


def test_a_checkpoint_that_was_not_sent_whole_is_not_taken(store, another_machine):
    with mirror.mirrored(ADDRESS) as folder:
        (folder / "checkpoints/000001").mkdir(parents=True)
        (folder / "checkpoints/000001/a").write_bytes(b"x")
    # As a process leaves it that is killed while it sends the second one.
    store.pipe_file("/bucket/run/checkpoints/000002/a", b"y")
    another_machine()
    with mirror.mirrored(ADDRESS) as folder:
        assert [p.name for p in (folder / "checkpoints").iterdir()] == ["000001"]


def test_what_a_killed_run_had_not_sent_goes_up_with_the_next_start_here(store):
    with mirror.mirrored(ADDRESS) as folder:
        (folder / "a").write_text("1")
    (folder / "b").write_text("2")  # as one that was killed before it was sent
    with mirror.mirrored(ADDRESS) as folder:
        assert (folder / "b").read_text() == "2"
    assert there(store) == {"a": b"1", "b": b"2"}


def test_what_another_machine_sent_since_replaces_what_is_here(store, another_machine, monkeypatch):
    cache = os.environ[remote.CACHE_ENV]
    with mirror.mirrored(ADDRESS) as folder:
        (folder / "a").write_text("1")
    another_machine()
    with mirror.mirrored(ADDRESS) as folder:
        (folder / "a").write_text("2")
    monkeypatch.setenv(remote.CACHE_ENV, cache)
    with mirror.mirrored(ADDRESS) as folder:
        assert (folder / "a").read_text() == "2"


def test_a_folder_that_was_copied_there_by_hand_is_gone_on_with(store):
    store.pipe_file("/bucket/run/metrics.jsonl", b"1\n")
    with mirror.mirrored(ADDRESS) as folder:
        assert (folder / "metrics.jsonl").read_text() == "1\n"


def test_damaged_bytes_are_named(store, another_machine):
    with mirror.mirrored(ADDRESS) as folder:
        (folder / "final.npz").write_bytes(b"right")
    store.pipe_file("/bucket/run/final.npz", b"wrong")
    another_machine()
    with pytest.raises(OSError, match=r"memory://bucket/run/final.npz is damaged: its sha256"):
        mirror.mirrored(ADDRESS).__enter__()


def test_a_second_run_is_kept_out_and_told_by_whom(store, another_machine, tmp_path):
    with mirror.mirrored(ADDRESS):
        with (
            pytest.raises(ValueError, match="in use by another process of this machine"),
            mirror.mirrored(ADDRESS),
        ):
            pass
        another_machine()
        with (
            pytest.raises(ValueError, match=rf"in use by process {os.getpid()} on .*since 20"),
            mirror.mirrored(ADDRESS),
        ):
            pass
        assert store.exists(f"/bucket/run/{remote.LOCK}")


def test_the_lock_of_a_process_that_was_killed_elsewhere_is_taken_over(store, caplog):
    lock = {"host": "gone", "pid": 7, "since": "then", "token": "x", "beat": 3}
    store.pipe_file(f"/bucket/run/{remote.LOCK}", json.dumps(lock).encode())
    start = time.monotonic()
    with caplog.at_level(logging.INFO, mirror.LOGGER.name), mirror.mirrored(ADDRESS):
        assert time.monotonic() - start >= mirror.STALE_S
    assert "process 7 on gone (since then) did not end by itself" in caplog.text


def test_a_run_whose_lock_another_one_took_sends_nothing_more(store):
    def run(folder):
        lock = {"host": "other", "pid": 7, "since": "now", "token": "theirs", "beat": 1}
        store.pipe_file(f"/bucket/run/{remote.LOCK}", json.dumps(lock).encode())
        time.sleep(0.3)
        (folder / "a").write_text("1")

    with (
        pytest.raises(ValueError, match="was taken over by another process"),
        mirror.mirrored(ADDRESS) as folder,
    ):
        run(folder)
    assert there(store) == {} and store.exists(f"/bucket/run/{remote.LOCK}")


@pytest.fixture
def break_writes(monkeypatch):
    """Returns a function: from now on so many writings of files fail, as a dropped connection."""
    real = fsspec.implementations.memory.MemoryFileSystem.put_file
    left = {"failures": 0, "calls": 0}

    def put_file(self, *args, **rest):
        left["calls"] += 1
        if left["failures"]:
            left["failures"] -= 1
            raise ConnectionResetError("dropped https://host/x?signature=SECRET")
        return real(self, *args, **rest)

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "put_file", put_file)
    return lambda count: left.update(failures=count)


def test_dropped_connections_are_tried_again(store, break_writes):
    break_writes(13)
    with mirror.mirrored(ADDRESS) as folder:
        (folder / "a").write_text("1")
    assert there(store) == {"a": b"1"}


def test_a_store_that_takes_nothing_is_one_error_that_says_where_the_run_is(store, break_writes):
    break_writes(10**9)
    with (
        pytest.raises(
            ValueError, match=r"ConnectionResetError, 5 times: .*the rest is in"
        ) as caught,
        mirror.mirrored(ADDRESS) as folder,
    ):
        (folder / "a").write_text("1")
    assert str(folder) in str(caught.value) and "SECRET" not in str(caught.value)
    assert (folder / "a").read_text() == "1"
    break_writes(0)
    with mirror.mirrored(ADDRESS):
        pass
    assert there(store) == {"a": b"1"}


def test_an_error_of_the_run_is_shown_first(store, break_writes):
    break_writes(10**9)

    def run(folder):
        (folder / "a").write_text("1")
        raise FloatingPointError("the reason")

    with (
        pytest.raises(FloatingPointError, match="the reason") as caught,
        mirror.mirrored(ADDRESS) as folder,
    ):
        run(folder)
    assert "Not all of the run is there" in caught.value.__notes__[0]


def test_a_slow_store_holds_up_nothing(store, monkeypatch):
    real = fsspec.implementations.memory.MemoryFileSystem.put_file
    is_open = threading.Event()

    def put_file(self, *args, **rest):
        is_open.wait(5)
        return real(self, *args, **rest)

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "put_file", put_file)
    with mirror.mirrored(ADDRESS) as folder:
        for number in range(5):
            (folder / "a").write_text(str(number))
        assert there(store) == {}
        is_open.set()
    assert there(store) == {"a": b"4"}


def test_a_file_that_arrives_cut_off_is_sent_again(store, monkeypatch):
    real, cut = fsspec.implementations.memory.MemoryFileSystem.put_file, [True, False]

    def put_file(self, path, place, **rest):
        real(self, path, place, **rest)
        if cut and cut.pop(0):
            self.pipe_file(place, pathlib.Path(path).read_bytes()[:-1])

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "put_file", put_file)
    with mirror.mirrored(ADDRESS) as folder:
        (folder / "a").write_text("whole")
    assert there(store) == {"a": b"whole"}


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("gs://bucket/run", r"gs://bucket/run needs the package gcsfs: pip install .*\[gcs\]"),
        ("s3://key:secret@bucket/run", r"^s3://bucket/run needs the package s3fs: .*\[s3\]"),
        ("nothing://bucket/run", "nothing:// is no address to fsspec"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, address, message):
    real = fsspec.url_to_fs

    def url_to_fs(url, **rest):
        if url.startswith(("gs://", "s3://")):
            raise ImportError("not installed")
        return real(url, **rest)

    monkeypatch.setattr(fsspec, "url_to_fs", url_to_fs)
    with pytest.raises(ValueError, match=message):
        remote.Store(address)


def test_what_is_not_allowed_is_said_at_once(store, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("token SECRET")

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "pipe_file", refuse)
    with pytest.raises(OSError, match="not allowed, or not with your credentials") as caught:
        mirror.mirrored(ADDRESS).__enter__()
    assert "SECRET" not in str(caught.value)


def test_files_are_fetched_and_folders_sent(store):
    store.pipe_file("/bucket/data/train.jsonl", b"{}")
    assert pathlib.Path(run_folder.fetch("memory://bucket/data/train.jsonl")).read_text() == "{}"
    assert run_folder.fetch("a/b.jsonl") == "a/b.jsonl"
    with run_folder.writing_to(f"{ADDRESS}/out") as out:
        pathlib.Path(out, "x").mkdir()
        pathlib.Path(out, "x/report.html").write_text("<p>")
    assert there(store)["out/x/report.html"] == b"<p>"
    with pytest.raises(FileNotFoundError, match="memory://bucket/nothing: nothing is there"):
        run_folder.fetch("memory://bucket/nothing")


def test_a_run_is_opened_without_its_checkpoints_and_gets_what_is_written(store):
    for name in ("config.json", "checkpoints/000001/a"):
        store.pipe_file(f"/bucket/run/{name}", b"1")
    with run_folder.opened(ADDRESS, checkpoints=False) as run:
        assert [p.name for p in pathlib.Path(run).iterdir()] == ["config.json"]
        pathlib.Path(run, "evaluation-val").mkdir()
        pathlib.Path(run, "evaluation-val/metrics.json").write_text("{}")
    assert there(store)["evaluation-val/metrics.json"] == b"{}"


def test_several_processes_and_an_address_are_an_error_before_anything_begins(monkeypatch):
    monkeypatch.setattr(train.arguments, "join_processes", lambda: None)
    words = ["--config", "demo", "--workdir", "gs://bucket/run", "--distributed"]
    with pytest.raises(ValueError, match="Mount the bucket"):
        train.main(words)


def test_places_here_stay_what_they_are(tmp_path):
    assert not any(map(run_folder.is_remote, ["runs/a", "C://x", "file:///x", tmp_path]))
    with contextlib.ExitStack() as opened:
        assert opened.enter_context(run_folder.working_in("runs/a")) == pathlib.Path("runs/a")
        assert opened.enter_context(run_folder.opened("runs/a")) == "runs/a"
        assert opened.enter_context(run_folder.writing_to(None)) is None

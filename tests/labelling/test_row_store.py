"""Labels survive a kill at any moment, undo, and two people at once."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from paligemma_jax.files import atomic
from paligemma_jax.labelling import data_opening, journal, row_store

FIRST = '{"image": "a.png",  "prefix": "detect cat", "suffix": ""}\n'  # two blanks: kept
SECOND = '{"prefix": "detect cat", "image": "b.png", "note": "\\u00e4"}\n'


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "train.jsonl").write_text(FIRST + SECOND)
    return tmp_path


@pytest.fixture
def store(folder):
    with data_opening.open_store(folder) as opened:
        yield opened


def key_of(store, image):
    return next(item.key for item in store.items() if item.images == (image,))


def save(store, image, by="ann", revision=None, **values):
    item = store.get(key_of(store, image))
    before = item.revision if revision is None else revision
    made = row_store.make_about(by, before + 1, is_done=True)
    row = {"image": image, "prefix": "p", "suffix": "s", **values, row_store.ABOUT: made}
    return store.change([row_store.Edit(item.key, before, row)], by=by)


def rows(folder, file="train.jsonl"):
    return [json.loads(line) for line in (folder / file).read_text().splitlines()]


def suffixes(store):
    return {item.images[0]: (item.row or {}).get("suffix") for item in store.items()}


def test_rows_and_images_without_a_row_are_items(store):
    items = store.items()
    assert [(i.images, i.is_labelled, i.is_done) for i in items] == [
        (("a.png",), True, True),
        (("b.png",), False, False),
        (("c.png",), False, False),
    ]
    assert [item.file for item in items] == ["train.jsonl", "train.jsonl", "labels.jsonl"]


def test_a_change_is_written_and_other_rows_keep_their_bytes(store, folder):
    save(store, "b.png", suffix="x")
    save(store, "c.png", suffix="y")
    store.flush()
    assert (folder / "train.jsonl").read_text().startswith(FIRST)
    assert rows(folder)[1]["suffix"] == "x"
    (row,) = rows(folder, "labels.jsonl")
    assert row["suffix"] == "y"
    assert row["labelling"]["by"] == "ann" and row["labelling"]["revision"] == 1
    assert store.is_written and not list(folder.glob("*.tmp"))


def test_undo_and_redo_go_through_all_changes_of_one_labeller_and_survive_a_restart(folder):
    with data_opening.open_store(folder) as store:
        for text in ("1", "2", "3"):
            save(store, "c.png", suffix=text)
        save(store, "b.png", by="bob", suffix="bob's")
        store.undo(by="ann")
    with data_opening.open_store(folder) as store:
        assert store.steps("ann") == (2, 1) and store.steps("bob") == (1, 0)
        seen = []
        while store.undo(by="ann"):
            seen.append(suffixes(store)["c.png"])
        assert seen == ["1", None]
        while store.redo(by="ann"):
            seen.append(suffixes(store)["c.png"])
        assert seen[2:] == ["1", "2", "3"]
        assert store.get(key_of(store, "c.png")).revision == 9
        assert suffixes(store)["b.png"] == "bob's"
        save(store, "c.png", suffix="new")
        assert store.steps("ann")[1] == 0


def test_a_label_that_is_taken_back_leaves_the_row_as_it_was(store, folder):
    before = (folder / "train.jsonl").read_bytes()
    save(store, "a.png", suffix="x")
    save(store, "b.png", suffix="y")
    store.flush()
    assert (folder / "train.jsonl").read_bytes() != before
    assert store.undo(by="ann") and store.undo(by="ann")
    store.flush()
    assert rows(folder) == [json.loads(FIRST), json.loads(SECOND)]


def test_changes_at_once_are_taken_back_at_once(store):
    items = [store.get(key_of(store, name)) for name in ("b.png", "c.png")]
    edits = [
        row_store.Edit(item.key, 0, {"image": item.images[0], "prefix": "p", "suffix": "all"})
        for item in items
    ]
    store.change(edits, by="ann")
    assert [suffixes(store)[name] for name in ("b.png", "c.png")] == ["all", "all"]
    store.undo(by="ann")
    assert [suffixes(store)[name] for name in ("b.png", "c.png")] == [None, None]


def test_the_second_of_two_labellers_is_told_and_nothing_is_lost(store, folder):
    save(store, "c.png", by="ann", suffix="ann's", revision=0)
    with pytest.raises(row_store.Conflict, match=r"c\.png: changed by ann") as conflict:
        save(store, "c.png", by="bob", suffix="bob's", revision=0)
    (current,) = conflict.value.items
    assert current.row["suffix"] == "ann's" and current.revision == 1
    lines = (folder / ".labelling" / "journal.jsonl").read_text().splitlines()
    refused = [line for line in map(json.loads, lines) if line["kind"] == journal.REFUSED]
    assert refused[0]["changes"][0]["after"]["suffix"] == "bob's"
    save(store, "c.png", by="bob", suffix="both", revision=1)
    with pytest.raises(row_store.Conflict, match="changed by bob"):
        store.undo(by="ann")
    assert suffixes(store)["c.png"] == "both"


def test_of_edits_at_once_none_is_made_where_one_is_late(store):
    save(store, "c.png", by="bob")
    edits = [
        row_store.Edit(key_of(store, name), 0, {"image": name, "prefix": "p", "suffix": "all"})
        for name in ("b.png", "c.png")
    ]
    with pytest.raises(row_store.Conflict):
        store.change(edits, by="ann")
    assert suffixes(store)["b.png"] is None


def test_who_asks_what_changed_gets_each_item_once(store):
    mark, changed = store.changed_since(0)
    assert changed == []
    save(store, "b.png")
    save(store, "b.png")
    mark, changed = store.changed_since(mark)
    assert [item.images for item in changed] == [("b.png",)]
    assert store.changed_since(mark)[1] == []


KILLED = """
import itertools, pathlib, sys
from paligemma_jax.labelling import data_opening, row_store
with data_opening.open_store(pathlib.Path(sys.argv[1])) as store:
    key = next(item.key for item in store.items() if item.images == ("c.png",))
    for n in itertools.count(int(sys.argv[2])):
        row = {"image": "c.png", "prefix": "p", "suffix": str(n), "pad": "x" * 20_000,
               "labelling": row_store.make_about("ann", n, is_done=True)}
        store.change([row_store.Edit(key, store.get(key).revision, row)], by="ann")
        print(n, flush=True)
"""


def test_a_kill_at_any_moment_loses_no_change_that_was_answered(folder):
    """The file is written all the time: the kill comes in the middle of one or between two."""
    for number in range(2):
        words = [sys.executable, "-c", KILLED, str(folder), str(1 + 1000 * number)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline()
            time.sleep(0.05 + 0.07 * number)
            os.kill(process.pid, signal.SIGKILL)
            told = process.stdout.read().split() or [str(1 + 1000 * number)]
        with data_opening.open_store(folder) as store:
            kept = int(suffixes(store)["c.png"])
            assert kept >= int(told[-1]) > 1000 * number
        assert rows(folder, "labels.jsonl")[0]["suffix"] == str(kept)


def test_what_the_file_lacks_comes_from_the_journal_and_a_torn_line_is_cut_off(folder, monkeypatch):
    def refuse(path, content):
        raise atomic.WriteError(28, f"{path} is not written: its disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(row_store, "write_file", refuse)
        patch.setattr(row_store, "RETRY_S", 0.01)
        opened = data_opening.open_store(folder)
        store = opened.__enter__()
        save(store, "a.png", suffix="in the journal")
        save(store, "c.png", suffix="too")
        with pytest.raises(atomic.WriteError, match="its disk is full"):
            opened.__exit__(None, None, None)
    assert (folder / "train.jsonl").read_text() == FIRST + SECOND
    with open(folder / ".labelling" / "journal.jsonl", "a") as file:
        file.write('{"kind": "change", "by": "ann", "at"')
    with data_opening.open_store(folder) as store:
        assert suffixes(store) == {"a.png": "in the journal", "b.png": None, "c.png": "too"}
    assert rows(folder)[0]["suffix"] == "in the journal"
    assert rows(folder, "labels.jsonl")[0]["suffix"] == "too"


def test_a_file_that_was_changed_by_hand_stays_so(folder):
    with data_opening.open_store(folder) as store:
        save(store, "a.png", suffix="labelled")
    text = (folder / "train.jsonl").read_text().replace("labelled", "by hand")
    (folder / "train.jsonl").write_text(text)
    with data_opening.open_store(folder) as store:
        assert suffixes(store)["a.png"] == "by hand"
        with pytest.raises(row_store.Conflict):
            store.undo(by="ann")


def test_a_broken_line_of_a_journal_is_named(folder):
    (folder / ".labelling").mkdir()
    (folder / ".labelling" / "journal.jsonl").write_text('{"kind": "chnage"}\n')
    with (
        pytest.raises(ValueError, match=r"journal\.jsonl:1: no line of a journal"),
        data_opening.open_store(folder),
    ):
        pass


def test_another_process_may_not_open_it(store, folder):
    with (
        pytest.raises(ValueError, match="is being labelled by another process"),
        data_opening.open_store(folder),
    ):
        pass


def test_rows_that_are_none_are_named(folder):
    (folder / "train.jsonl").write_text(FIRST + '{"image": 3}\n{"image"\n')
    with (
        pytest.raises(ValueError, match="2 of 3 lines are bad") as problem,
        data_opening.open_store(folder),
    ):
        pass
    assert "train.jsonl:2: key 'image'" in str(problem.value)


def test_images_come_by_their_numbers_and_hidden_ones_and_links_do_not(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / ".thumbnails").mkdir()
    for name in ("10.png", "2.PNG", "inner/1.jpg", ".thumbnails/2.png", ".x.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "link.png").symlink_to(pathlib.Path("/etc/passwd"))
    with data_opening.open_store(tmp_path) as store:
        assert [item.images[0] for item in store.items()] == ["2.PNG", "10.png", "inner/1.jpg"]


def test_an_empty_folder_says_what_it_should_hold(tmp_path):
    with pytest.raises(ValueError, match="no image there"), data_opening.open_store(tmp_path):
        pass


def test_several_rows_of_one_image_have_keys_of_their_own(store):
    item = store.add("labels.jsonl", ("c.png",))
    assert item.key != key_of(store, "c.png") and len(store) == 4
    assert row_store.split_key(item.key) == ("labels.jsonl", ("c.png",), 1)

"""A run whose disk, folder or base fails on the way: one error in words, and nothing lost."""

import builtins
import errno
import os
import pathlib
import shutil
import time

import pytest

from paligemma_jax.checkpoints import npz, train_checkpoint
from paligemma_jax.console import process
from paligemma_jax.files import atomic
from paligemma_jax.reports import run_log
from paligemma_jax.runs import auto_remat, training_run, whole_run
from paligemma_jax.settings import load

pytestmark = pytest.mark.slow
# What a run writes, in order, and the last step of the checkpoints that are there when the disk
# refuses it.
FILES = {
    "config.json": None,
    "metrics.jsonl": 2,
    "events.out": None,
    "report.html": 2,
    "final.npz": 2,
}


@pytest.fixture
def full_disk(monkeypatch):
    """A set of the beginnings of names that the disk refuses."""
    refused: set[str] = set()
    replace = os.replace

    def refuse(path):
        if any(pathlib.Path(path).name.startswith(name) for name in refused):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class File:
        def __init__(self, path, *arguments, **options):
            self.path, self.inner = path, builtins.open(path, *arguments, **options)  # noqa: SIM115

        def write(self, piece):
            refuse(self.path)
            return self.inner.write(piece)

        def __getattr__(self, name):
            return getattr(self.inner, name)

    monkeypatch.setattr(atomic, "open", File, raising=False)
    monkeypatch.setattr(os, "replace", lambda a, b, **x: (refuse(b), replace(a, b, **x)))
    return refused


@pytest.mark.parametrize("name", FILES)
def test_full_disk_at_any_file_is_one_error_with_the_state_saved(config, tmp_path, full_disk, name):
    config.ckpt_steps, config.log_training_steps = 0, 1
    settings, workdir = load.typed(config), tmp_path / "run"
    full_disk.add(name)
    with pytest.raises(OSError, match="its disk is full") as caught:
        whole_run.train(settings, workdir)
    assert name in str(caught.value).partition(" is not written")[0]
    assert not hasattr(caught.value, "__notes__")
    assert not [path for path in workdir.rglob("*") if path.suffix == ".tmp"]
    saved = sorted(path.name for path in workdir.glob("checkpoints/*"))
    assert saved[-1:] == ([] if FILES[name] is None else [f"{FILES[name]:06d}"])
    full_disk.clear()
    whole_run.train(settings, workdir)
    assert (workdir / "final.npz").exists()
    rows = run_log.read_rows(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows][-1] == 2 or name == "metrics.jsonl"


class Tracker:
    """Does something after the first row of a run."""

    def __init__(self, action):
        self.action = action

    def start(self, *_): ...

    def log(self, *_):
        self.action()
        self.action = lambda: None

    def log_files(self, *_): ...

    def finish(self, *_): ...


def test_folder_that_is_removed_on_the_way_ends_the_run_with_an_error(config, tmp_path):
    config.ckpt_steps, config.log_training_steps, config.evals = 0, 100, {}
    config.total_steps = 400
    workdir = tmp_path / "run"

    remover = Tracker(lambda: shutil.rmtree(workdir))
    with pytest.raises(OSError, match="is not there any more"):
        whole_run.train(load.typed(config), workdir, more_trackers=[remover])
    assert not (workdir / "final.npz").exists()
    # Nobody else is there: what was in memory is kept.
    assert [path.name for path in workdir.iterdir()] == ["checkpoints"]


def test_the_final_file_comes_when_the_last_checkpoint_is_whole(config, tmp_path, monkeypatch):
    config.evals, config.keep_last = {}, 1
    write_sizes, save = train_checkpoint.Writer._write_sizes, training_run.save
    seen = []

    def write_late(writer):
        time.sleep(0.5)
        write_sizes(writer)

    def look(*arguments):
        seen.extend(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
        save(*arguments)

    monkeypatch.setattr(train_checkpoint.Writer, "_write_sizes", write_late)
    monkeypatch.setattr(training_run, "save", look)
    whole_run.train(load.typed(config), tmp_path / "run")
    assert seen == ["000002"]


def test_base_that_was_replaced_meanwhile_is_an_error_after_all_is_saved(config, tmp_path):
    config.evals, config.ckpt_steps = {}, 0
    whole_run.train(load.typed(config), tmp_path / "first")
    base = tmp_path / "base.npz"
    shutil.copy(tmp_path / "first" / "final.npz", base)
    config.model_init, config.save, config.trainable = str(base), "trainable", "llm/layers/.*"

    def replace():
        npz.write(base, {name: array + 1 for name, array in npz.read(base).items()})

    with pytest.raises(ValueError, match=r"final.npz is saved, .*base.npz was replaced while"):
        whole_run.train(load.typed(config), tmp_path / "run", more_trackers=[Tracker(replace)])
    assert npz.read(tmp_path / "run" / "final.npz").keys() < npz.read(base).keys()


def test_what_processes_have_read_is_compared_before_anything_is_compiled(
    config, tmp_path, monkeypatch
):
    seen = {}

    def compare(what, facts):
        seen[what] = facts() if what == "data or weights" else None
        if what == "data or weights":
            raise ValueError("they differ")

    monkeypatch.setattr(process, "require_same", compare)
    monkeypatch.delattr(auto_remat, "plan_run")
    with pytest.raises(ValueError, match="they differ"):
        whole_run.train(load.typed(config), tmp_path / "run")
    assert list(seen) == ["settings, folder, code or packages", "data or weights"]
    assert {"data.examples", "data.texts"} <= {
        f"{name}.{key}" for name, facts in seen["data or weights"].items() for key in facts
    }

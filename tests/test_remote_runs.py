"""Runs whose folder is in a store: killed while they send, and gone on with elsewhere."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from paligemma_jax.reports import run_log
from tests import tiny_runs

PROGRAM = (
    "from tests import shelf\n"
    "from paligemma_jax.data import locations\n"
    "locations.PACKAGES['shelf'] = 'fsspec'\n"
    "from paligemma_jax.files import mirror, remote\n"
    "mirror.LOOK_S, remote.WAIT_S = 0.01, 0.01\n"
    "import sys\n"
    "from paligemma_jax.console import arguments\n"
    "from paligemma_jax import {door}\n"
    "arguments.run(lambda: {door}.main(sys.argv[1:]))\n"
)
CONFIG = """
import pathlib
from tests import tiny_runs

def get_config(arg=""):
    return tiny_runs.make_config(pathlib.Path({folder!r}), save="all")
"""


def start(door, cache, shelf, *words):
    environment = {**os.environ, "SHELF": str(shelf), "PALIGEMMA_JAX_CACHE": str(cache)}
    environment["PYTHONPATH"] = str(pathlib.Path(__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(door=door), *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def untimed(path):
    """Returns the rows of a run without what the machine's speed and its caches decide."""
    timed = {"seconds", "examples_per_s", "input_wait", "programs_compiled"}
    return [
        {name: value for name, value in row.items() if name not in timed}
        for row in run_log.read_rows(path)
    ]


@pytest.mark.slow
def test_a_run_killed_while_it_sends_ends_on_another_machine_as_if_it_had_not_been(tmp_path):
    shelf, whole = tmp_path / "shelf", tmp_path / "whole"
    shelf.mkdir()
    (tmp_path / "config.py").write_text(CONFIG.format(folder=str(tmp_path)))
    tiny_runs.write_data(tmp_path)
    tiny_runs.write_base(tmp_path / "base.npz", tiny_runs.make_config(tmp_path))
    words = "--config", tmp_path / "config.py", "--workdir"
    start("train", tmp_path / "here", shelf, *words, whole).communicate(timeout=400)
    words = *words, "shelf://bucket/run"
    first = start("train", tmp_path / "here", shelf, *words)
    deadline = time.monotonic() + 400
    while not list(shelf.glob("bucket/run/checkpoints/*/*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert not (shelf / "bucket/run/final.npz").exists()
    assert (shelf / "bucket/run/in-use-by.json").exists()

    second = start("train", tmp_path / "there", shelf, *words)
    _, said = second.communicate(timeout=400)
    assert second.returncode == 0, said
    assert "did not end by itself" in said and "all of it is at shelf://bucket/run" in said
    run = shelf / "bucket/run"
    assert not (run / "in-use-by.json").exists() and not list(run.rglob("*.part"))
    rows, theirs = (untimed(folder / "metrics.jsonl") for folder in (run, whole))
    assert rows == theirs and len(rows) == tiny_runs.STEPS
    with np.load(run / "final.npz") as ours, np.load(whole / "final.npz") as theirs:
        assert sorted(ours) == sorted(theirs)
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)

    (shelf / "data").mkdir()
    (shelf / "data/train.jsonl").write_bytes((tmp_path / "train.jsonl").read_bytes())
    words = "--run", "shelf://bucket/run", "--data", "shelf://data/train.jsonl", "--name", "again"
    third = start("evaluate", tmp_path / "third", shelf, *words, "--eval.decode=False")
    out, said = third.communicate(timeout=400)
    assert third.returncode == 0, said
    assert '"loss"' in out
    assert (run / "evaluation-again/report.html").exists()

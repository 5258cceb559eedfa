"""The command that pretrains the small base goes on wherever it was killed, and ends the same."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from paligemma_jax.checkpoints import npz

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 8
STAGES = ("find", "language", "all", "last")
SIZE = ("--train", "16", "--valid", "32", "--tower", "32", "--no_evals")
SIZE += tuple(word for stage in STAGES for word in (f"--{stage}", str(STEPS)))


def start(folder: pathlib.Path, *more: str) -> subprocess.Popen:
    """Starts the command in a session of its own, so that all of it can be killed."""
    script = ROOT / "experiments" / "tiny_base" / "pretrain.py"
    where = ["--data", str(folder / "data"), "--workdir", str(folder / "run")]
    with open(folder / "said.txt", "ab") as said:
        return subprocess.Popen(
            [sys.executable, str(script), *where, *SIZE, *more],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )


def finish(folder: pathlib.Path, *more: str) -> None:
    process = start(folder, *more)
    status = process.wait(timeout=900)
    assert status == 0, (folder / "said.txt").read_text()[-4000:]


def kill_once(folder: pathlib.Path, is_time) -> None:
    """Starts the command and kills it as soon as `is_time()`."""
    process, deadline = start(folder), time.monotonic() + 600
    while not is_time():
        assert process.poll() is None, (folder / "said.txt").read_text()[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_killed_while_drawing_and_while_training_it_ends_as_if_it_had_not_been(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    finish(whole)

    images, run = killed / "data" / "images", killed / "run" / "all"
    kill_once(killed, lambda: len([*images.glob("train_*.jpg")]) >= 5)
    assert not [*(killed / "data").glob("_annotations.*")]
    kill_once(killed, lambda: [*(run / "checkpoints").glob("00000[2-6]")])
    assert not (run / "final.npz").exists()
    finish(killed, "--ship", str(killed / "shipped"))

    for name in ("_annotations.train.jsonl", "_annotations.detect.jsonl", "tokenizer.model"):
        assert (killed / "data" / name).read_bytes() == (whole / "data" / name).read_bytes(), name
    first, second = (
        npz.read(folder / "run" / STAGES[-1] / "final.npz") for folder in (whole, killed)
    )
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)
    shipped = npz.read(killed / "shipped" / "weights.npz")
    assert shipped.keys() == first.keys()
    assert {str(array.dtype) for array in shipped.values()} == {"bfloat16"}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == STEPS

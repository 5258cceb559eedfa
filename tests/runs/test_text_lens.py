"""Batches of short texts: the run is the one with full length, and goes on as it began."""

import json
import os
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma_jax.assembly import assembly, datasets
from paligemma_jax.checkpoints import npz
from paligemma_jax.checks import planned_run
from paligemma_jax.data import pipeline
from paligemma_jax.reports import run_log
from paligemma_jax.runs import memory_plan, training_run, whole_run
from paligemma_jax.settings import load
from paligemma_jax.training import step

TIMINGS = {"seconds", "examples_per_s", "input_wait", "programs_compiled"}
BOX = "<loc0100><loc0200><loc0500><loc0600> cat"


@pytest.fixture
def lengths(config, data_folder, tmp_path):
    """Settings of six steps of two rows, of which one row in five is long."""
    suffixes = ["", BOX, BOX, BOX, f"{BOX} ; {BOX}"]
    rows = [
        {"image": f"{data_folder}/a.png", "prefix": "detect cat", "suffix": suffix}
        for suffix in suffixes
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.input.data.fname = f"{tmp_path}/train.jsonl"
    config.input.data.image_dir = str(data_folder)
    config.input.text_lens = [8, 14]
    config.evals = {}
    config.total_steps, config.lr = 6, 1e-2
    config.log_training_steps, config.ckpt_steps, config.keep_last = 1, 2, 9
    return config


def rows(workdir) -> list[dict]:
    found = run_log.read_rows(workdir / "metrics.jsonl")
    return [{key: row[key] for key in row if key not in TIMINGS} for row in found]


@pytest.mark.slow
def test_losses_are_those_of_full_length_and_a_resumed_run_is_the_same(lengths, tmp_path, capsys):
    workdir = tmp_path / "short"
    whole_run.train(load.typed(lengths), workdir)
    said = capsys.readouterr().err
    found, weights = rows(workdir), npz.read(workdir / "final.npz")
    used = [row["text_len"] for row in found]
    assert set(used) == {14, 24}
    assert said.count("compiling the step for text_len 14") == 1

    (workdir / "final.npz").unlink()
    for path in sorted((workdir / "checkpoints").iterdir())[1:]:
        shutil.rmtree(path)
    whole_run.train(load.typed(lengths), workdir)
    assert "going on after step 2" in capsys.readouterr().err
    assert rows(workdir) == found
    for name, array in npz.read(workdir / "final.npz").items():
        assert array.tobytes() == weights[name].tobytes(), name

    lengths.input.text_lens = None
    whole_run.train(load.typed(lengths), tmp_path / "full")
    for row, full in zip(found, rows(tmp_path / "full"), strict=True):
        assert full.pop("text_len") == 24
        row.pop("text_len")
        assert row == pytest.approx(full, rel=1e-5)


CONFIG = """
import json, pathlib
from paligemma_jax.settings import presets

def get_config(arg=""):
    return presets.defaults(json.loads(pathlib.Path(arg).read_text()))
"""


@pytest.mark.slow
def test_two_processes_with_rows_of_their_own_agree_on_each_length(lengths, tmp_path):
    alone = tmp_path / "alone"
    whole_run.train(load.typed(lengths), alone)
    (tmp_path / "config.py").write_text(CONFIG)
    command = [sys.executable, "-m", "paligemma_jax.train", f"--workdir={tmp_path / 'two'}"]
    command += [f"--config={tmp_path / 'config.py'}:{alone / 'config.json'}", "--distributed"]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    shared = {**os.environ, "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    both = [
        subprocess.Popen(
            command,
            env={**shared, "JAX_PROCESS_ID": str(number)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for one in both:
        _, errors = one.communicate(timeout=400)
        assert one.returncode == 0, errors
    # One of two rows is long, if any: in one process alone.
    assert {row["text_len"] for row in rows(alone)} == {14, 24}
    for row, single in zip(rows(tmp_path / "two"), rows(alone), strict=True):
        assert row == pytest.approx(single, rel=1e-4)


def test_a_program_is_compiled_when_a_length_first_comes_and_then_kept(capsys):
    def batch(text_len: int) -> dict[str, jax.Array]:
        return {"text": jnp.ones((2, text_len + 1))}

    def add(state, batch, number, values):
        return state + batch["text"].sum() + number + values["more"]

    jitted, values = jax.jit(add), {"more": np.float32(0)}
    longest = jitted.lower(jnp.zeros([]), batch(4), 0, values).compile()
    train_step = memory_plan.by_text_len(jitted, {4: longest}, values)
    sums = [float(train_step(jnp.zeros([]), batch(T), 1)) for T in (4, 2, 2, 4)]
    assert sums == [11, 7, 7, 11]
    assert capsys.readouterr().err == "compiling the step for text_len 2\n"


@pytest.mark.slow
def test_each_length_has_its_own_program_and_its_own_work(lengths, monkeypatch, capsys):
    built = assembly.assemble(load.typed(lengths))
    planned = training_run.plan(built)
    found = memory_plan.make(built, planned)
    assert set(found.works) == {8, 14, 24} and found.work is found.works[24]
    monkeypatch.setattr(memory_plan.flops, "peak", lambda _: 1e12)
    values = [found.mfu(seconds=1.0, supervised=5, text_len=T) for T in (8, 14, 24)]
    assert values == sorted(values) and values[0] < values[2]
    begun = planned.optimizer.trainable, planned.optimizer.tx
    state = step.init_state(assembly.load_weights(built, None), *begun)
    batches = list(
        pipeline.train_batches(
            planned.data.records,
            built.tokenizer,
            datasets.spec(load.typed(lengths)),
            seed=0,
            total_steps=6,
            text_lens=datasets.text_lens(load.typed(lengths)),
        )
    )
    used = [batch["text"].shape[1] - 1 for batch in batches]
    assert set(used) == {14, 24}
    for number, batch in enumerate(datasets.on_mesh(iter(batches), built.mesh)):
        state, metrics = found.train_step(state, batch, number)
        assert metrics.to_host()["text_len"] == used[number]
    assert capsys.readouterr().err.count("compiling the step for text_len 14") == 1


@pytest.mark.parametrize(
    ("text_lens", "message"),
    [
        ([24], "expected up to 3 different lengths of 1 to 23"),
        ([0], "lengths of 1 to 23"),
        ([8, 8], "different lengths"),
        ([4, 8, 12, 16], "up to 3"),
    ],
)
def test_lengths_that_make_no_sense_are_refused(lengths, text_lens, message):
    lengths.input.text_lens = text_lens
    built = assembly.assemble(load.typed(lengths))
    with pytest.raises(ValueError, match=message):
        training_run.plan(built)
    _, found, _ = planned_run.look(load.typed(lengths), built.tokenizer, examples=[])
    assert [one.subject for one in found] == ["input.text_lens"]


def test_a_length_that_is_no_whole_number_is_refused(lengths):
    lengths.input.text_lens = [8.5]
    with pytest.raises(ValueError, match=r"text_lens: expected int in the list, found 8\.5"):
        load.typed(lengths)


def test_noise_boxes_leave_no_text_short(lengths):
    lengths.input.noise_piece = "cat"
    with pytest.raises(ValueError, match=r"filled up to input.text_len; leave out one"):
        training_run.plan(assembly.assemble(load.typed(lengths)))

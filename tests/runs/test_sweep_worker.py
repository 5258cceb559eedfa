"""Runs of a sweep that one process trains have the results of runs in processes of their own."""

import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import pytest

from paligemma_jax.checkpoints import npz
from paligemma_jax.reports import run_log
from paligemma_jax.runs import sweep_runs, sweep_worker
from paligemma_jax.settings import sweeps
from tests import tiny_runs

# How long things took, and what a process had compiled before.
OF_A_PROCESS = {"seconds", "input_seconds", "images_per_s", "examples_per_s", "programs_compiled"}
OF_A_PROCESS |= {"input_wait", "mfu", "time"}


@pytest.fixture
def config(tmp_path) -> str:
    """A config file with a sweep over arguments of the step, and over what is none."""
    tiny_runs.write_pictures(tmp_path)
    path = tmp_path / "config.py"
    path.write_text(
        textwrap.dedent(f"""
        from paligemma_jax.settings import presets

        def get_config(arg=""):
            c = presets.from_scratch(
                res=28,
                text_len=24,
                img=dict(width=16, depth=2, mlp_dim=16, num_heads=2),
                llm=dict(width=16, depth=2, mlp_dim=16, num_heads=2, num_kv_heads=1, head_dim=8),
            )
            c.input.data.fname = "{tmp_path}/train.jsonl"
            c.input.batch_size = 4
            c.tokenizer = "{tmp_path}/tokenizer.model"
            c.total_steps = 3
            c.log_training_steps = 1
            c.model.llm.dropout = 0.1
            c.evals.val = dict(fname="{tmp_path}/train.jsonl", log_steps=3, max_new_tokens=4)
            return c

        def sweep(add):
            add(lr=0.01)
            add(lr=0.03, seed=3)
            add(lr=0.01, label_smoothing=0.1)
        """)
    )
    return str(path)


def results(folder: pathlib.Path) -> tuple:
    """Returns (weights as bytes, rows of metrics, predictions) of a run."""
    rows = [
        {name: value for name, value in row.items() if name not in OF_A_PROCESS}
        for row in run_log.read_rows(folder / "metrics.jsonl")
    ]
    weights = {name: x.tobytes() for name, x in npz.read(folder / "final.npz").items()}
    return weights, rows, (folder / "predictions-val-000003.jsonl").read_bytes()


@pytest.mark.slow
def test_runs_of_one_process_are_equal_to_runs_of_their_own_bit_for_bit(config, tmp_path):
    runs = sweeps.read(config)
    assert sweep_runs.train(runs, tmp_path / "together") == {}
    compiled = []
    for run in runs:
        words = sweep_runs.command(run, tmp_path / "alone")
        words = ["-m", "paligemma_jax.train", *words[words.index("--config") :]]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, *words], env=env, check=True, capture_output=True)
        folders = [tmp_path / name / run.name for name in ("together", "alone")]
        together, alone = map(results, folders)
        assert together == alone
        assert {path.name for path in folders[0].iterdir()} == {
            path.name for path in folders[1].iterdir()
        }
        log = (folders[0] / "train.log").read_text()
        assert [other.name for other in runs if f"{other.name}/report" in log] == [run.name]
        compiled.append(run_log.read_rows(folders[0] / "metrics.jsonl")[-1]["programs_compiled"])
    assert compiled[1] < compiled[2] < compiled[0]  # another loss is another step


@pytest.mark.slow
def test_the_arrays_of_a_run_are_freed_before_the_next(config, tmp_path):
    held = []
    for run in sweeps.read(config)[:2]:
        assert sweep_worker.train(sweep_runs.make_job(run, tmp_path))
        held.append(sum(x.nbytes for x in jax.live_arrays()))
    weights = sum(x.nbytes for x in npz.read(tmp_path / "lr=0.01" / "final.npz").values())
    assert held[1] <= held[0] < weights / 2


@pytest.mark.slow
def test_a_config_that_changes_its_process_leaves_it_to_nobody_else(config, tmp_path, monkeypatch):
    path = pathlib.Path(config)
    path.write_text("import os\nos.environ['A_VARIABLE'] = '1'\n" + path.read_text())
    monkeypatch.delenv("A_VARIABLE", raising=False)
    run = sweeps.read(config)[0]
    monkeypatch.delenv("A_VARIABLE")
    assert not sweep_worker.train(sweep_runs.make_job(run, tmp_path))
    assert (tmp_path / run.name / "final.npz").exists()

"""Many runs from one config: one after the other, again after a stop, and compared."""

import concurrent.futures
import contextlib
import json
import pathlib
import re
import shlex
import signal
import textwrap
import threading
import time

import pytest

from paligemma_jax import sweep
from paligemma_jax.console import process, workers
from paligemma_jax.reports import run_log
from paligemma_jax.runs import sweep_runs
from paligemma_jax.settings import load

SCORES = {"lr=0.1": [0.2, 0.6, 0.5], "lr=0.2": [0.1, 0.3, 0.7], "lr=0.3": [0.1]}


@pytest.fixture
def config(tmp_path) -> str:
    """A config file whose sweep has three runs."""
    path = tmp_path / "config.py"
    path.write_text(
        textwrap.dedent(f"""
        from paligemma_jax.settings import presets

        def get_config(arg=""):
            c = presets.finetune(model="paligemma2-3b", res=224, text_len=32, method="attention")
            c.input.data.fname = "train.jsonl"
            c.total_steps = 3
            c.evals.valid = dict(fname="valid.jsonl")
            return c

        def sweep(add):
            for lr in {[float(name[3:]) for name in SCORES]}:
                add(lr=lr)
        """)
    )
    return str(path)


@pytest.fixture
def training(monkeypatch):
    """Stands in for trainings: writes what they write. Holds (calls, statuses by name)."""
    calls: list[str] = []
    statuses: dict[str, tuple[int, bool]] = {}

    def call(worker, job):
        workdir = pathlib.Path(job["workdir"])
        calls.append(workdir.name)
        config = load.load(job["source"], job["overrides"])
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.json").write_text(load.to_json(config))
        log = run_log.MetricsFile()
        log.start(workdir, {}, 0)
        for step, score in enumerate(SCORES[workdir.name], start=1):
            log.log(step, {"loss": 1 - score, "valid/loss": 2.0, "valid/map50": score})
        log.finish("finished")
        status = statuses.get(workdir.name, (0, False))
        if status == (0, False):
            (workdir / "final.npz").touch()
        return status

    monkeypatch.setattr(workers.Worker, "call", call)
    return calls, statuses


def run(config: str, workdir: pathlib.Path, *more: str) -> dict:
    sweep.main(["--config", config, "--workdir", str(workdir), *more])
    return json.loads((workdir / "sweep.json").read_text())


def test_runs_are_trained_in_turn_and_compared_the_best_first(config, training, tmp_path, capsys):
    written = run(config, tmp_path / "out")
    assert training[0] == list(SCORES)
    assert written["score"] == "valid/map50"
    assert [row["name"] for row in written["runs"]] == ["lr=0.2", "lr=0.1", "lr=0.3"]
    first = written["runs"][1]
    assert (first["last"], first["best"], first["best_step"]) == (0.5, 0.6, 2)
    assert (first["state"], first["values"]) == ("done", {"lr": 0.1})
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "3 runs by valid/map50"
    assert table[2].split() == ["lr", "state", "valid/map50", "best", "at", "step", "loss"]
    assert table[3].split() == ["0.2", "done", "0.7", "0.7", "3", "0.3"]
    page = (tmp_path / "out" / "sweep.html").read_text()
    assert page.count('role="img"') == 2 and page.count("<tr") == 4


def test_the_table_is_there_before_the_runs_and_leads_to_their_reports(
    config, training, tmp_path, monkeypatch
):
    out, call, states = tmp_path / "out", workers.Worker.call, []

    def watch(worker, job):
        rows = json.loads((out / "sweep.json").read_text())["runs"]
        states.append([row["state"] for row in rows])
        assert (out / "sweep.html").exists()
        result = call(worker, job)
        (out / training[0][-1] / "report.html").touch()
        return result

    monkeypatch.setattr(workers.Worker, "call", watch)
    run(config, out)
    assert states[0] == ["not begun"] * 3 and sorted(states[2]) == ["done", "done", "not begun"]
    links = re.findall(r'<a href="([^"]*)">([^<]*)</a>', (out / "sweep.html").read_text())
    assert links == [(f"lr%3D{lr}/report.html", lr) for lr in ("0.2", "0.1", "0.3")]


def test_equal_scores_are_ordered_by_the_loss(config, training, tmp_path):
    written = run(config, tmp_path / "out", "--score", "valid/loss")
    assert [row["name"] for row in written["runs"]] == ["lr=0.2", "lr=0.1", "lr=0.3"]


def test_runs_that_ended_are_not_begun_again(config, training, tmp_path):
    calls, statuses = training
    statuses["lr=0.2"] = (75, False)
    with pytest.raises(process.Preempted, match=r"run 2 of 3: lr=0.2. The same command"):
        run(config, tmp_path / "out")
    assert calls == ["lr=0.1", "lr=0.2"]
    statuses.clear()
    written = run(config, tmp_path / "out")
    assert calls == ["lr=0.1", "lr=0.2", "lr=0.2", "lr=0.3"]
    assert {row["state"] for row in written["runs"]} == {"done"}


def test_finished_runs_of_other_settings_are_no_runs_of_this_sweep(config, training, tmp_path):
    run(config, tmp_path / "out")
    with pytest.raises(ValueError, match=r"(?s)lr=0.1 holds a run with other settings.*seed"):
        run(config, tmp_path / "out", "--config.seed=3")


def test_failing_run_keeps_no_other_from_running_and_is_named(config, training, tmp_path):
    calls, statuses = training
    statuses["lr=0.1"] = (2, False)
    with pytest.raises(ValueError, match=r"1 of 3 runs failed, as said above: lr=0.1"):
        run(config, tmp_path / "out")
    assert calls == list(SCORES)
    written = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert {row["name"]: row["state"] for row in written["runs"]}["lr=0.1"] == "failed"


def test_signal_during_a_run_ends_the_sweep_whatever_the_run_says(config, training, tmp_path):
    calls, statuses = training
    statuses["lr=0.1"] = (-signal.SIGTERM, True)
    with pytest.raises(process.Preempted):
        run(config, tmp_path / "out")
    assert calls == ["lr=0.1"]


def test_one_run_alone_and_a_table_of_what_there_is(config, training, tmp_path, capsys):
    written = run(config, tmp_path / "out", "--only", "1", "--score", "valid/loss")
    assert training[0] == ["lr=0.2"]
    assert [row["state"] for row in written["runs"]] == ["done", "not begun", "not begun"]
    assert written["runs"][1]["last"] is None
    run(config, tmp_path / "out", "--table")
    assert training[0] == ["lr=0.2"]
    assert capsys.readouterr().out.splitlines()[-3].split() == ["0.1", "not", "begun", *"----"]
    with pytest.raises(ValueError, match="--only 3: the sweep has runs 0 to 2"):
        run(config, tmp_path / "out", "--only", "3")
    with pytest.raises(ValueError, match=r"--score='test/map'.*the evaluations are \['valid'\]"):
        run(config, tmp_path / "out", "--table", "--score", "test/map")


def test_commands_that_need_quotes_name_the_run_by_its_number(config, tmp_path, capsys):
    path = pathlib.Path(config)
    added = "    for t in ('llm/.*', 'img/.*|llm/.*', '$(x)'):\n        add(trainable=t)\n"
    path.write_text(path.read_text().partition("def sweep")[0] + "def sweep(add):\n" + added)
    sweep.main(["--config", config, "--workdir", str(tmp_path), "--commands", "--config.seed=3"])
    lines = capsys.readouterr().out.splitlines()
    assert [shlex.join(line.split()) for line in lines[1:]] == lines[1:]
    whole = f"paligemma-jax sweep --config {config} --workdir {tmp_path}"
    assert lines[1] == f"{whole} --only 1 --config.seed=3"
    assert lines[2] == f"{whole} --only 2 --config.seed=3"


def test_commands_are_lines_for_a_shell(config, training, tmp_path, capsys):
    words = ["--config", config, "--workdir", "my runs", "--commands", "--config.seed=3"]
    sweep.main(words)
    assert training[0] == []
    assert capsys.readouterr().out.splitlines()[0] == (
        f"paligemma-jax train --config {config} --workdir 'my runs/lr=0.1' "
        "--config.seed=3 --config.lr=0.1"
    )


def test_processes_with_a_run_each_write_one_table(config, training, tmp_path, monkeypatch):
    """Threads stand for the processes: the lock is one of files."""
    calls, statuses = training
    statuses["lr=0.1"] = (2, False)
    out, write, overlaps, writing = tmp_path / "out", sweep_runs.write, [], threading.Lock()

    def write_slowly(*arguments):
        overlaps.append(not writing.acquire(blocking=False))
        time.sleep(0.05)
        write(*arguments)
        writing.release()

    def train(number):
        with contextlib.suppress(ValueError):  # a run failed
            run(config, out, "--only", str(number))

    monkeypatch.setattr(sweep_runs, "write", write_slowly)
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        list(threads.map(train, range(3)))
    assert sorted(calls) == list(SCORES) and overlaps == [False] * 6

    def states():
        written = json.loads((out / "sweep.json").read_text())
        return {row["name"]: row["state"] for row in written["runs"]}

    assert states() == {"lr=0.1": "failed", "lr=0.2": "done", "lr=0.3": "done"}
    assert (out / "sweep.html").read_text().rstrip().endswith("</html>")
    run(config, out, "--table")
    assert states()["lr=0.1"] == "failed"
    statuses.clear()
    run(config, out, "--only", "0")
    assert states()["lr=0.1"] == "done"


def test_a_run_that_failed_has_not_once_it_has_gone_on(config, training, tmp_path):
    statuses, out = training[1], tmp_path / "out"
    statuses["lr=0.1"] = (2, False)
    with pytest.raises(ValueError, match="1 of 3 runs failed"):
        run(config, out)
    log = run_log.MetricsFile()
    log.start(out / "lr=0.1", {}, 3)
    log.log(4, {"loss": 0.1})
    log.finish("finished")
    written = run(config, out, "--table")
    assert {row["name"]: row["state"] for row in written["runs"]}["lr=0.1"] == "at step 4"

import contextlib
import csv
import json
import math
import pathlib
import re
import shutil
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest

from paligemma_jax.files import atomic, run_folder
from paligemma_jax.reports import run_log
from paligemma_jax.runs import training_log, whole_run
from paligemma_jax.settings import load


@contextlib.contextmanager
def track(folder, resumed_step=None):
    """The trackers of every run, as a run uses them."""
    made = run_log.Trackers(run_log.make(["tensorboard"]))
    made.start(folder, {}, resumed_step)
    yield made
    made.finish("finished")


def lines(folder):
    return (folder / run_folder.METRICS).read_text().splitlines()


def test_a_row_is_on_disk_before_the_next_step(tmp_path):
    with track(tmp_path) as log:
        log.log(1, {"loss": np.float32(0.1), "count": 3})
        assert lines(tmp_path) == ['{"step": 1, "loss": 0.100000001, "count": 3}']
        log.log(2, {"loss": jnp.float32(2.5)})
        assert run_log.read_rows(tmp_path / run_folder.METRICS) == [
            {"step": 1, "loss": 0.100000001, "count": 3},
            {"step": 2, "loss": 2.5},
        ]
    assert list((tmp_path / run_folder.TENSORBOARD).glob("events*"))


def test_nine_digits_keep_every_float32(tmp_path):
    values = np.random.default_rng(0).normal(size=50).astype(np.float32)
    with track(tmp_path) as log:
        for step, value in enumerate(values):
            log.log(step, {"x": value})
    rows = run_log.read_rows(tmp_path / run_folder.METRICS)
    np.testing.assert_array_equal(np.float32([row["x"] for row in rows]), values)


def test_nan_is_null_and_named(tmp_path):
    with track(tmp_path) as log:
        log.log(7, {"loss": np.float32("nan"), "norm": float("-inf"), "lr": 0.1})
    (line,) = lines(tmp_path)
    nonfinite = {"loss": "nan", "norm": "-inf"}
    assert json.loads(line) == {
        **{"step": 7, "loss": None, "norm": None, "lr": 0.1},
        "nonfinite": nonfinite,
    }
    (row,) = run_log.read_rows(tmp_path / run_folder.METRICS)
    assert math.isnan(row["loss"]) and row["norm"] == -math.inf and "nonfinite" not in row


def test_rows_of_one_step_are_joined_and_the_last_value_counts(tmp_path):
    with track(tmp_path) as log:
        log.log(1, {"loss": 3.0})
        log.log(1, {"val/map50": 0.5, "loss": 2.0})
    rows = run_log.read_rows(tmp_path / run_folder.METRICS)
    assert rows == [{"step": 1, "loss": 2.0, "val/map50": 0.5}]


def test_a_resumed_run_voids_what_came_after_its_checkpoint(tmp_path):
    with track(tmp_path) as log:
        for step in (1, 2, 3, 4):
            log.log(step, {"loss": float(step)})
    with track(tmp_path, resumed_step=2) as log:
        log.log(3, {"loss": 30.0})
    rows = run_log.read_rows(tmp_path / run_folder.METRICS)
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_a_line_torn_by_a_crash_is_cut_at_resume(tmp_path):
    with track(tmp_path) as log:
        log.log(1, {"loss": 1.0})
    with open(tmp_path / run_folder.METRICS, "a") as file:
        file.write('{"step": 2, "lo')
    assert [row["step"] for row in run_log.read_rows(tmp_path / run_folder.METRICS)] == [1]
    with track(tmp_path, resumed_step=1) as log:
        log.log(2, {"loss": 2.0})
    assert [row["step"] for row in run_log.read_rows(tmp_path / run_folder.METRICS)] == [1, 2]


def test_a_new_run_does_not_mix_with_an_old_one(tmp_path):
    with track(tmp_path) as log:
        log.log(1, {"loss": 1.0})
    with pytest.raises(ValueError, match="holds the metrics of another run"):
        track(tmp_path).__enter__()


@pytest.mark.parametrize("line", ["{broken", "[1]", '{"loss": 1}', '{"step": "x"}'])
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    path = tmp_path / run_folder.METRICS
    path.write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: not a row of metrics"):
        run_log.read_rows(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": "high"}, "'loss' is not a number"),
        ({"loss": np.zeros(2)}, "'loss' is not one number"),
        ({"step": 1}, r"cannot be called \['step'\]"),
    ],
)
def test_what_is_no_metric_is_refused(tmp_path, values, message):
    with track(tmp_path) as log, pytest.raises(ValueError, match=message):
        log.log(1, values)
    assert lines(tmp_path) == []


DOCS = pathlib.Path(__file__).parents[2] / "docs" / "extending.md"


class Notes:
    """A tracker that keeps what it is called with; `fails` names a method that raises."""

    def __init__(self, fails=()):
        self.calls, self.fails = [], fails

    def note(self, name, *arguments):
        self.calls.append((name, *arguments))
        if name in self.fails:
            raise OSError(f"{name} fails")

    def start(self, folder, settings, resumed_step):
        self.note("start", folder, settings, resumed_step)

    def log(self, step, values):
        self.note("log", step, values)

    def log_files(self, step, evaluation, files):
        self.note("log_files", step, evaluation, files)

    def finish(self, status):
        self.note("finish", status)


def documented_tracker():
    """Returns the class of the first example in the section of docs/extending.md."""
    section = DOCS.read_text().split("## A tracker")[1].split("\n## ")[0]
    source = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    names = {}
    exec(textwrap.dedent(source), names)
    return names["LossTable"]


@pytest.mark.slow
def test_the_documented_tracker_follows_a_real_run_and_its_resume(config, tmp_path):
    config.ckpt_steps, config.log_training_steps, config.evals.val.log_steps = 1, 1, 1
    first, notes = documented_tracker()(), Notes()
    whole_run.train(load.typed(config), tmp_path, more_trackers=[first, notes])
    assert first.status == "finished"
    assert [path.name for path in first.reports] == ["report.html"] * 2
    name, folder, settings, resumed_step = notes.calls[0]
    assert (name, folder, resumed_step) == ("start", tmp_path, None)
    assert settings["input"]["batch_size"] == 2
    rows = run_log.read_rows(tmp_path / run_folder.METRICS)
    logged = [{"step": call[1], **call[2]} for call in notes.calls if call[0] == "log"]
    assert logged == rows and {"loss", "val/loss"} <= logged[1].keys()
    (files,) = [call[3] for call in notes.calls if call[:3] == ("log_files", 2, "val")]
    assert all(file.exists() for file in files)
    assert files[0].name == "predictions-val-000002.jsonl"

    (tmp_path / "final.npz").unlink()
    with config.unlocked():
        config.total_steps = 3
    again = documented_tracker()()
    whole_run.train(load.typed(config), tmp_path, resume_anyway=True, more_trackers=[again])
    rows = run_log.read_rows(tmp_path / run_folder.METRICS)
    table = list(csv.reader((tmp_path / "loss.csv").read_text().splitlines()))
    assert [(int(step), float(loss)) for step, loss in table] == [
        (row["step"], row["loss"]) for row in rows
    ]
    assert [row["step"] for row in rows] == [1, 2, 3]


@pytest.mark.parametrize(("error", "status"), [(None, "stopped"), (ValueError("no"), "failed")])
def test_trackers_are_finished_with_how_the_run_ended(tmp_path, error, status):
    notes = Notes()
    log = training_log.Log(tmp_path, every=1, total_steps=9, settings={"lr": 1}, trackers=[notes])
    expected = pytest.raises(ValueError, match="no") if error else contextlib.nullcontext()
    with expected, log:
        log.append({"step": 1, "loss": 2.0})
        log.status = "stopped"
        if error:
            raise error
    assert notes.calls == [
        ("start", tmp_path, {"lr": 1}, None),
        ("log", 1, {"loss": 2.0}),
        ("finish", status),
    ]


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again_at_step_0(tmp_path):
    with training_log.Log(tmp_path, every=1, total_steps=9) as log:
        log.append({"step": 1, "loss": 2.0})
    notes = Notes()
    with training_log.Log(tmp_path, every=1, total_steps=9, trackers=[notes]):
        assert notes.calls == [("start", tmp_path, {}, 0)]
    assert run_log.read_rows(tmp_path / run_folder.METRICS) == []


def test_a_tracker_that_cannot_start_or_finish_leaves_none_of_the_others_open(tmp_path):
    first, second, third = Notes(), Notes(fails=["start"]), Notes()
    with pytest.raises(OSError, match="start fails"):
        run_log.Trackers([first, second, third]).start(tmp_path, {}, None)
    assert first.calls[-1] == ("finish", "failed") and third.calls == []
    first, second, third = Notes(), Notes(fails=["finish"]), Notes()
    made = run_log.Trackers([first, second, third])
    made.start(tmp_path, {}, 0)
    with pytest.raises(OSError, match="finish fails"):
        made.finish("finished")
    assert [one.calls[-1] for one in (first, third)] == [("finish", "finished")] * 2


def test_tensorboard_gets_what_is_finite_and_nothing_after_a_resumed_step(tmp_path):
    from tensorboardX.proto import event_pb2

    for resumed_step in (None, 1):
        board = run_log.TensorBoard()
        board.start(tmp_path, {}, resumed_step)
        board.log(2, {"loss": 0.5, "norm": float("nan")})
        board.finish("finished")
    tags, purged = [], []
    for path in sorted((tmp_path / run_folder.TENSORBOARD).glob("events*")):
        raw, at = path.read_bytes(), 0
        while at < len(raw):  # length, its checksum, the event, its checksum
            length = int.from_bytes(raw[at : at + 8], "little")
            event = event_pb2.Event.FromString(raw[at + 12 : at + 12 + length])
            tags += [value.tag for value in event.summary.value]
            purged += [event.step] if event.session_log.status else []
            at += 16 + length
    assert set(tags) == {"loss"} and purged == [2]


@pytest.mark.parametrize("make", [run_log.MetricsFile, run_log.TensorBoard])
def test_tracker_on_a_full_disk_ends_the_run_with_the_name_of_its_file(tmp_path, make):
    tracker = make()
    tracker.start(tmp_path, {}, None)
    tracker._file.close()
    tracker._file = atomic.GrowingFile("/dev/full")
    with pytest.raises(OSError, match="/dev/full is not written: its disk is full"):
        tracker.log(1, {"loss": 2.0})
    tracker.finish("failed")


def test_a_run_whose_folder_is_removed_ends_at_its_next_step(tmp_path):
    log = training_log.Log(tmp_path / "run", every=100, total_steps=900)
    with log:
        log.append({"step": 2, "loss": 1.0})  # no row is due here, nor at the next step
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(OSError, match=r"metrics.jsonl is not there any more"):
            log.append({"step": 3, "loss": 1.0})


def test_tracker_that_cannot_finish_does_not_hide_why_the_run_ended(tmp_path):
    notes = Notes(fails=["finish"])
    log = training_log.Log(tmp_path, every=1, total_steps=9, trackers=[notes])
    with pytest.raises(ValueError, match="the reason") as caught, log:
        raise ValueError("the reason")
    assert caught.value.__notes__ == ["And a tracker could not finish: finish fails"]

import contextlib
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from paligemma_jax.files import run_folder
from paligemma_jax.reports import run_log, trackers


@contextlib.contextmanager
def track(folder, resumed_step=None):
    """The trackers of every run, as a run uses them."""
    made = trackers.Trackers()
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

"""What a person reads of a run: a line of a step, aligned with the others, and tables of scores."""

import re

import pytest

from paligemma_jax.console import say
from paligemma_jax.reports import run_log
from paligemma_jax.runs import training_log


@pytest.fixture
def clock(monkeypatch):
    """The seconds that the log reads, set by a test."""
    now = [0.0]
    monkeypatch.setattr(training_log.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def lines(monkeypatch):
    """What is said."""
    said: list[str] = []
    monkeypatch.setattr(say, "info", said.append)
    return said


def row(number, **values):
    usual = dict(epoch=number / 8, lr=3e-5, loss=1.5, examples_per_s=12.34, seconds=0.1)
    return {"step": number, **usual, **values}


def test_lines_of_steps_are_aligned_and_tell_how_long_the_rest_takes(tmp_path, clock, lines):
    log = training_log.Log(tmp_path, every=1, total_steps=1200, total_epochs=150.0, unit="images")
    with log:
        for number, loss, later in ((1, 8.291, 0), (2, 0.00002, 20), (101, 12.5, 1000)):
            clock[0] = float(later)
            log.append(row(number, loss=loss, input_wait=0.5))
    assert lines == [
        "step    1/1200  epoch   0.12/150.00  lr 3.00e-05  loss   8.2910     12.3 images/s",
        "step    2/1200  epoch   0.25/150.00  lr 3.00e-05  loss  2.0e-05     12.3 images/s  "
        "6 h 39 min left  50% of it waiting for images",
        "step  101/1200  epoch  12.62/150.00  lr 3.00e-05  loss  12.5000     12.3 images/s  "
        "3 h 3 min left  50% of it waiting for images",
    ]


def test_many_rows_are_few_lines_where_no_bar_is_shown_and_all_rows_are_kept(
    tmp_path, clock, lines
):
    with training_log.Log(tmp_path, every=1, total_steps=600) as log:
        for number in range(1, 601):
            clock[0] = number / 10
            log.append(row(number))
    assert [int(re.match(r"step +(\d+)/600", line)[1]) for line in lines] == [
        *(1, 101, 201, 301, 401, 501, 600)
    ]
    assert len(run_log.read_rows(tmp_path / "metrics.jsonl")) == 600


def test_an_evaluation_is_a_table_and_the_last_one_has_a_line_for_each_class(
    tmp_path, clock, lines
):
    scores = {"loss": 0.25, "map50": 0.5, "num_truths": 30.0, "mean_tokens": 7.0}
    scores |= {"per_class/a/b/map50": 0.75, "per_class/a/b/num_truths": 10.0}
    scores |= {"per_class/cat/map50": 0.25, "per_class/cat/num_truths": 20.0}
    values = {f"val/{name}": value for name, value in scores.items()} | {"lr/llm/.*": 0.1}
    with training_log.Log(tmp_path, every=100, total_steps=8) as log:
        log.append(row(3, **{"lr/llm/.*": 0.1, "epochs/a": 1.0}))  # not due, and no evaluation
        log.append(row(4, **values))
        log.append(row(8, **values))
    _, table, _, last = (text.strip("\n").splitlines() for text in lines)
    assert table == [
        "val, step 4  true objects  mAP 50   loss",
        "----------------------------------------",
        "all                    30   0.500  0.250",
    ]
    assert last[2:] == [
        "all                    30   0.500  0.250",
        "cat                    20   0.250",
        "a/b                    10   0.750",
    ]

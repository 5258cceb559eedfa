"""Durations become steps, by the same rules for schedules, for evaluations and for checkpoints."""

import json
import pathlib

import pytest

from paligemma_jax.training import durations

REFERENCE = json.loads(
    (pathlib.Path(__file__).parents[1] / "reference" / "schedules.json").read_text()
)


@pytest.mark.parametrize("case", REFERENCE["steps"], ids=lambda case: str(case["config"]))
def test_durations_are_big_visions(case):
    known = {key: case[key] for key in ("data_size", "batch_size", "total_steps") if key in case}
    assert durations.read(case["prefix"], case["config"]).in_steps(**known) == case["result"]


@pytest.mark.parametrize(
    ("amounts", "expected"),
    [
        ({"log_steps": 7}, 7),
        ({"log_percent": 1 / 8}, 8),
        ({"log_examples": 20}, 2),  # 2.5 rounds to the even neighbour
        ({"log_epochs": 1}, 12),  # 12.5 likewise
        ({"log_epochs": 0.0001}, 1),
        ({"log_steps": 0}, 0),
        ({"log_steps": -1}, None),
        ({"log_steps": -1, "log_examples": 16}, 2),
        ({}, None),
    ],
)
def test_durations_become_steps(amounts, expected):
    duration = durations.read("log", amounts)
    assert duration.in_steps(data_size=100, batch_size=8, total_steps=64) == expected


@pytest.mark.parametrize(
    ("amounts", "message"),
    [
        ({"log_steps": 1, "log_percent": 0.1}, "set one of"),
        ({"log_percent": 5}, "log_percent=5 is a fraction"),
        ({"log_epochs": 1}, "log_epochs needs batch_size and"),
    ],
)
def test_durations_that_cannot_be_converted_are_errors(amounts, message):
    with pytest.raises(ValueError, match=message):
        durations.read("log", amounts).in_steps(total_steps=10)

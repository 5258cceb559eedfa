"""Durations become steps, by the same rules for schedules, for evaluations and for checkpoints."""

import json
import pathlib

import jax
import numpy as np
import pytest

from paligemma_jax.training import schedules

REFERENCE = json.loads(
    (pathlib.Path(__file__).parents[1] / "reference" / "schedules.json").read_text()
)


@pytest.mark.parametrize("case", REFERENCE["steps"], ids=lambda case: str(case["config"]))
def test_durations_are_big_visions(case):
    known = {key: case[key] for key in ("data_size", "batch_size", "total_steps") if key in case}
    assert (
        schedules.read_duration(case["prefix"], case["config"]).in_steps(**known) == case["result"]
    )


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
    duration = schedules.read_duration("log", amounts)
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
        schedules.read_duration("log", amounts).in_steps(total_steps=10)


# Schedules: big_vision's numbers, and no key that is quietly ignored.

CASES = REFERENCE["create_learning_rate_schedule"]


def of(**kwargs):
    sizes = {
        key: kwargs.pop(key, None if key != "total_steps" else 100)
        for key in ("total_steps", "batch_size", "data_size")
    }
    return jax.jit(schedules.make_schedule(kwargs, **sizes))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["kwargs"]["decay_type"])
def test_values_equal_big_vision(case):
    schedule = of(**case["kwargs"])
    values = schedule(np.asarray(case["steps"]))
    np.testing.assert_allclose(values, case["lr"], rtol=2e-6, atol=1e-7 * max(case["lr"]))


@pytest.mark.parametrize(
    "case", [c for c in REFERENCE["steps"] if c["prefix"] == "warmup"], ids=lambda c: str(c)
)
def test_durations_round_as_big_vision(case):
    # A linear warm-up of n steps is first at its top at step n.
    schedule = of(decay_type="constant", total_steps=case.get("total_steps", 10), **case["config"])
    assert int(np.argmax(schedule(np.arange(10)) == 1.0)) == case["result"]


def test_warm_up_may_begin_above_and_a_cosine_end_above_zero():
    schedule = of(decay_type="cosine", end=0.1, warmup_steps=10, warmup_start=0.1, total_steps=110)
    values = schedule(np.asarray([0, 5, 10, 60, 110]))
    np.testing.assert_allclose(values, [0.1, 0.55, 1.0, 0.55, 0.1], rtol=1e-6)


def test_one_step_that_is_all_warm_up_is_finite():
    schedule = of(decay_type="cosine", warmup_percent=0.1, total_steps=1)
    np.testing.assert_allclose(schedule(np.arange(3)), [0.0, 1.0, 0.0])


def test_constant_equals_stair_without_steps():
    np.testing.assert_array_equal(
        of(decay_type="constant", base=0.3)(np.arange(5)), of(base=0.3)(np.arange(5))
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (dict(decay_type="cosin"), "decay_type='cosin' is not known. Did you mean 'cosine'"),
        (dict(decay_type="cosine", warmup_step=3), "no key 'warmup_step'. Did you mean 'warmup_"),
        (dict(decay_type="cosine", power=2), "no key 'power'. Only polynomial use"),
        (dict(decay_type="cosine", warmup_steps=100), "warm-up of 100 of 100 steps"),
        (dict(decay_type="cosine", warmup_start=0.1), "warmup_start needs a warm-up"),
        (dict(decay_type="cosine", warmup_steps=1, warmup_percent=0.1), "set one of"),
        (dict(decay_type="cosine", warmup_percent=5), "warmup_percent=5 is a fraction"),
        (dict(decay_type="cosine", warmup_epochs=1), "warmup_epochs needs batch_size and"),
        (dict(decay_type="stair", steps=[3]), "one of mults for each of steps"),
        (dict(decay_type="cosine", scale_with_batchsize=True), "needs the batch size"),
    ],
)
def test_wrong_spec_is_named(spec, message):
    with pytest.raises(ValueError, match=message):
        of(**spec)

"""Durations of a run, from settings."""

from paligemma_jax.runs import run_length
from paligemma_jax.settings import load, presets


def test_minus_one_leaves_a_duration_open():
    """One meaning for the length of a run, its saves and its evaluations, as a sweep sets them."""
    config = presets.defaults()
    config.evals.val = dict(fname="val.jsonl", log_percent=-1, log_examples=40)
    load.override(config, ["total_examples=-1", "total_steps=-1", "total_epochs=2.0"])
    load.override(config, ["ckpt_steps=-1", "ckpt_percent=0.5"])
    settings = load.typed(config)
    sizes = dict(total_steps=20, data_size=80)
    assert run_length.total_steps(settings, data_size=80) == 20
    assert run_length.steps_between_saves(settings, **sizes) == 10
    assert run_length.steps_between_saves(load.change(settings, ["ckpt_percent=-1"]), **sizes) == 2
    val = settings.evals["val"]
    assert run_length.steps_between_evaluations(val, batch_size=8, **sizes) == 5
    assert run_length.is_repeated(val)
    val = load.change(settings, ["evals.val.log_examples=-1"]).evals["val"]
    assert run_length.steps_between_evaluations(val, batch_size=8, **sizes) == 0
    assert not run_length.is_repeated(val)

"""What `overfit` makes of settings."""

import pytest

from paligemma_jax.settings import load, overfit, presets, schema

CONFIGS = sorted(load.shipped_configs().values())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_takes_it_and_keeps_what_trains(path):
    usual, changed = (load.load(f"{path}{arg}") for arg in ("", ":overfit"))
    assert changed.input.num_examples == changed.input.batch_size == 8
    assert changed.stop_at == (("overfit/verbatim", 1.0),)
    assert changed.evals == {"overfit": schema.EvalSettings(fname="input", log_steps=20)}
    assert (changed.total_steps, changed.total_epochs, changed.total_examples) == (400, None, None)
    # What is only evaluated has no rate to keep.
    rates = ("lr", "optax_name") if usual.lr else ()
    assert changed.lr > 0
    for key in (*rates, "trainable", "res", "model_init", "wd_mults"):
        assert getattr(changed, key) == getattr(usual, key), key
    micro, limit = (c.input.batch_size / c.accumulation_steps for c in (changed, usual))
    assert micro <= limit


def test_what_keeps_a_model_from_repeating_goes():
    config = presets.finetune(model="paligemma2-3b")
    config.input.augment.update(flip_lr=0.5, crop=0.4)
    config.input.noise_piece, config.input.allow_truncation = "<unused0>", True
    config.label_smoothing, config.ema_decay, config.model.llm.dropout = 0.1, 0.99, 0.1
    config.total_epochs, config.ckpt_percent, config.keep_best = 3, 0.1, "val/loss"
    config.evals.val = dict(fname="val.jsonl")
    changed = overfit.make(config)
    load.typed(changed)
    assert changed.input.augment == presets.defaults().input.augment
    assert (changed.input.noise_piece, changed.input.allow_truncation) == (None, False)
    assert (changed.label_smoothing, changed.ema_decay, changed.model.llm.dropout) == (0, None, 0)
    assert (changed.total_epochs, changed.ckpt_percent, changed.keep_best) == (None, None, None)
    assert list(changed.evals) == ["overfit"]


def test_rates_no_longer_decay_and_frozen_stays_frozen():
    config = presets.finetune(model="paligemma2-3b")
    config.schedule = [
        ("img/.*", None),
        ("llm/.*", dict(decay_type="linear", warmup_steps=2, base=0.5)),
    ]
    constant = {"decay_type": "constant", "warmup_steps": 10}
    assert overfit.make(config).schedule == [
        ("img/.*", None),
        ("llm/.*", {**constant, "base": 0.5}),
    ]
    config.schedule = dict(decay_type="cosine", warmup_percent=0.1)
    assert overfit.make(config).schedule.to_dict() == constant


@pytest.mark.parametrize(
    ("batch_size", "parts", "expected"),
    [(64, 4, (8, 1)), (8, 2, (8, 2)), (6, 3, (6, 3)), (6, 1, (6, 1)), (256, 128, (8, 4))],
)
def test_micro_batches_are_no_larger_than_before(batch_size, parts, expected):
    config = presets.finetune(model="paligemma2-3b")
    config.input.batch_size, config.accumulation_steps = batch_size, parts
    overfit.make(config)
    assert (config.input.batch_size, config.accumulation_steps) == expected

"""Optimizers are described by rules on names; what is misspelled is named."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from paligemma_jax.training import optimizer

PARAMS = {
    name: jax.ShapeDtypeStruct(shape, jnp.float32)
    for name, shape in {
        "img/head/kernel": (2, 3),
        "img/head/bias": (3,),
        "llm/embedder/input_embedding": (4, 3),
        "llm/layers/attn/q_einsum/w": (3, 3),
    }.items()
}
CONSTANT = dict(decay_type="constant")


def make(**settings):
    defaults = dict(schedule=CONSTANT, total_steps=10, lr=0.5, optax_name="sgd")
    return optimizer.make_optimizer(PARAMS, **(defaults | settings))


def first_updates(opt):
    """Updates of gradients of ones at parameters of ones."""
    ones = {name: jnp.ones(PARAMS[name].shape) for name in opt.trainable}
    updates = jax.jit(lambda p: opt.tx.update(p, opt.tx.init(p), p)[0])(ones)
    return {name: float(np.unique(u).item()) for name, u in updates.items()}


def test_frozen_parameters_have_no_optimizer_state():
    opt = make(
        schedule=[("llm/.*/attn/.*", CONSTANT), (".*", None)], optax_name="adam", wd=0.1, lr=0.5
    )
    assert opt.trainable == ["llm/layers/attn/q_einsum/w"]
    shapes = {name: PARAMS[name] for name in opt.trainable}
    moments = [x for x in jax.tree.leaves(jax.eval_shape(opt.tx.init, shapes)) if x.shape]
    assert [x.shape for x in moments] == [(3, 3)] * 2


@pytest.mark.parametrize(
    ("optax_name", "optax_args", "num_bytes"),
    [
        ("sgd", {}, 0),
        ("big_vision.momentum_hp", {}, 2),
        ("scale_by_lion", dict(mu_dtype="bfloat16"), 2),
        ("big_vision.scale_by_adafactor", {}, 2),
        ("scale_by_adam", dict(mu_dtype="bfloat16"), 6),
        ("scale_by_adam", {}, 8),
    ],
)
def test_state_takes_so_many_bytes_per_parameter(optax_name, optax_args, num_bytes):
    shape = jax.ShapeDtypeStruct((1024, 2048), jnp.float32)
    opt = optimizer.make_optimizer(
        {"w": shape},
        schedule=CONSTANT,
        total_steps=10,
        lr=0.5,
        optax_name=optax_name,
        optax_args=optax_args,
    )
    state = jax.tree.leaves(jax.eval_shape(opt.tx.init, {"w": shape}))
    found = sum(x.size * x.dtype.itemsize for x in state)
    # Adafactor's rows and columns, and counts, are few.
    assert found / shape.size == pytest.approx(num_bytes, abs=0.01)


def test_decay_follows_the_schedule_but_not_the_learning_rate():
    opt = make(schedule=dict(decay_type="constant", warmup_steps=2), schedule_offset=1, wd=0.25)
    # At half of the warm-up: (gradient * lr + decay * parameter) / 2, on kernels by default.
    assert first_updates(opt) == {
        "img/head/kernel": -(0.5 + 0.25) / 2,
        "img/head/bias": -0.5 / 2,
        "llm/embedder/input_embedding": -0.5 / 2,
        "llm/layers/attn/q_einsum/w": -0.5 / 2,
    }


def test_multipliers_go_to_the_first_rule_that_matches():
    opt = make(
        lr_mults=[("llm/embedder/.*", 0.5), ("llm/.*", 2.0)],
        wd=1.0,
        wd_mults=[("img/.*", 0.125)],
    )
    assert opt.lrs == {
        "img/head/bias": 0.5,
        "img/head/kernel": 0.5,
        "llm/embedder/input_embedding": 0.25,
        "llm/layers/attn/q_einsum/w": 1.0,
    }
    assert first_updates(opt) == {name: -(lr + opt.decays[name]) for name, lr in opt.lrs.items()}
    assert opt.decays["img/head/bias"] == 0.125 and opt.decays["llm/layers/attn/q_einsum/w"] == 0.0


def test_groups_are_the_trainable_names_of_each_rule():
    opt = make(schedule=[("img/head/bias", None), ("img/.*", CONSTANT), (".*", CONSTANT)])
    assert opt.groups == {
        "img/.*": ("img/head/kernel",),
        ".*": ("llm/embedder/input_embedding", "llm/layers/attn/q_einsum/w"),
    }
    assert opt.schedules.keys() == opt.groups.keys()


def test_offset_of_one_counts_as_the_colab():
    cosine = dict(decay_type="cosine", warmup_percent=0.1)
    trainer, colab = (make(schedule=cosine, total_steps=64, schedule_offset=n) for n in (0, 1))
    assert trainer.schedules[".*"](0) == 0.0
    np.testing.assert_allclose(colab.schedules[".*"](0), 1 / 6, rtol=1e-6)
    # The schedule of 65 steps that ends at 0 is never asked for its end.
    assert colab.schedules[".*"](63) > 0


def test_clipping_sees_trainable_gradients_together():
    opt = make(schedule=[("img/.*", CONSTANT), (".*", None)], grad_clip_norm=1.0, lr=1.0)
    updates = first_updates(opt)
    np.testing.assert_allclose(list(updates.values()), -1 / 3, rtol=1e-6)  # 9 ones: norm 3


@pytest.mark.parametrize("name", ["momentum", "adamw", "scale_by_lion", "big_vision.momentum_hp"])
def test_transform_is_known_by_name(name):
    assert set(first_updates(make(optax_name=name))) == set(PARAMS)


def test_moments_are_placed_like_their_parameters():
    opt = make(
        optax_name="big_vision.scale_by_adafactor", optax_args=dict(min_dim_size_to_factor=2)
    )
    tree = optimizer.opt_state_like(opt.tx, PARAMS, {name: name for name in PARAMS}, "other")
    momentum = optax.tree.get(tree, "ema")
    assert momentum == {name: name for name in PARAMS}
    assert optax.tree.get(tree, "v_row")["img/head/kernel"] == "other"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(optax_name="adan"), "optax_name='adan' is not known. Did you mean .*adam"),
        (dict(optax_name="scale_by_schedule"), "is not known"),
        (
            dict(optax_name="adam", optax_args=dict(beta2=0.9)),
            "'adam' has no argument 'beta2'. .*It has: b1, b2",
        ),
        (dict(optax_name="adam", optax_args=dict(b1="x")), "optax_name='adam' with optax="),
        (dict(schedule=[("lm/.*", CONSTANT), (".*", None)]), "schedule: rule 'lm/.*' matches no"),
        (dict(schedule=[("img/.*", CONSTANT)]), "no rule covers parameter 'llm/"),
        (dict(schedule=[(".*", None)]), "every parameter is frozen"),
        (dict(schedule=dict(decay_type="cosine", base=3)), "set by lr and lr_mults"),
        (dict(lr_mults=[("llm/.*", 0.0)]), "rule 'llm/.*' has factor 0.0; to freeze"),
        (dict(lr_mults=[("lm/.*", 0.5)]), "lr_mults: rule 'lm/.*' matches no"),
        (dict(wd=0.1, wd_mults=[("kernel", 0.5)]), "wd_mults: rule 'kernel' matches no"),
    ],
)
def test_wrong_setting_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)

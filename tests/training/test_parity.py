"""Ten updates as big_vision makes them: the Colab's and eleven recipes of the trainer."""

import functools

import jax
import numpy as np
import pytest

from paligemma_jax.training import optimizer, step

COSINE = dict(decay_type="cosine", warmup_percent=0.05)
BASE = dict(
    optax_name="scale_by_adam",
    optax_args=dict(b2=0.999),
    lr=1e-3,
    wd=3e-7,
    grad_clip_norm=1.0,
    schedule=[("img/.*", None), ("llm/.*", COSINE)],
)
CASES = {
    "base": {},
    "smooth0.1": dict(label_smoothing=0.1),
    "forkme": dict(lr=1e-5, optax_args={}, schedule=[("img/.*", COSINE), ("llm/.*", COSINE)]),
    "lr_mults": dict(
        lr_mults=[("img/.*", 0.1), ("llm/embedder/.*", 0.3), ("llm/layers/attn/.*", 2.0)],
        schedule=COSINE,
    ),
    "groups": dict(
        wd=0.05,
        schedule=[
            ("llm/embedder/.*", None),
            ("img/.*", dict(decay_type="linear", warmup_steps=3, linear_end=0.1)),
            (
                "llm/layers/mlp/.*",
                dict(decay_type="rsqrt", warmup_steps=2, timescale=4, cooldown_steps=3),
            ),
            ("llm/.*", dict(decay_type="cosine", warmup_examples=8)),
        ],
    ),
    "wd_mults": dict(
        wd=0.05,
        schedule=COSINE,
        wd_mults=[("img/.*/kernel", 1.0), ("llm/layers/(attn|mlp)/.*", 0.5)],
    ),
    "noclip": dict(grad_clip_norm=None),
    "clip0.1_warm0": dict(
        grad_clip_norm=0.1, schedule=[("img/.*", None), ("llm/.*", dict(decay_type="cosine"))]
    ),
    "adafactor": dict(optax_name="big_vision.scale_by_adafactor", optax_args=dict(beta2_cap=0.95)),
    "momentum_hp": dict(optax_name="big_vision.momentum_hp", optax_args={}),
    "sgd": dict(optax_name="big_vision.sgd", optax_args={}, lr=0.03),
}
QUICK = ("base", "smooth0.1", "groups", "noclip")  # of these the default suite


def train(jit, tiny_paligemma, params, batches, *, label_smoothing=0.0, **settings):
    opt = optimizer.make_optimizer(params, **settings)
    train_step = jit(
        step.make_train_step(*tiny_paligemma, opt.tx, seed=0, label_smoothing=label_smoothing)
    )
    state = step.init_state(params, opt.trainable, opt.tx)
    rows = []
    for batch in batches:
        state, metrics = train_step(state, batch)
        rows.append(metrics)
    rows = jax.device_get(rows)
    return opt, state, {key: np.array([row[key] for row in rows]) for key in rows[0]}


def assert_same_parameters(params, stats):
    """`stats`: name -> (sum, l2 norm) in float64 of big_vision's final parameters."""
    assert params.keys() == stats.keys()
    for name, (expected_sum, expected_norm) in stats.items():
        if name.endswith("key/bias"):
            # Softmax ignores what is added to all keys: this gradient is rounding noise (1e-8), and
            # Adam makes steps of full size of it.
            continue
        values = np.asarray(params[name], np.float64)
        np.testing.assert_allclose(np.linalg.norm(values), expected_norm, rtol=1e-5, err_msg=name)
        # What errors of 1e-5 of the values, all of one sign, could add up to.
        atol = 1e-5 * expected_norm * np.sqrt(values.size)
        np.testing.assert_allclose(values.sum(), expected_sum, atol=atol, rtol=0, err_msg=name)


@pytest.mark.parametrize(
    "case",
    [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES],
)
def test_trainer_case_equals_big_vision(case, quick_jit, tiny_paligemma, reference_run):
    check_trainer_case(case, quick_jit, tiny_paligemma, reference_run)


@pytest.mark.slow
def test_what_the_compiler_makes_by_default_equals_big_vision(tiny_paligemma, reference_run):
    """What users run: the tests above turn optimizations off, to compile in a fifth of the time."""
    default_jit = functools.partial(jax.jit, donate_argnums=0)
    check_trainer_case("base", default_jit, tiny_paligemma, reference_run)


def check_trainer_case(case, jit, tiny_paligemma, reference_run):
    params, batches, out = reference_run("trainer")
    settings = {**BASE, **CASES[case], "total_steps": 10, "batch_size": 4, "data_size": 40}
    opt, state, found = train(jit, tiny_paligemma, params, batches, **settings)

    expected = {k.removeprefix(f"{case}/"): v for k, v in out.items() if k.startswith(f"{case}/")}
    np.testing.assert_allclose(found["loss"], expected["training_loss"], rtol=1e-5)
    np.testing.assert_allclose(found["grad_norm"], expected["l2_grads"], rtol=1e-5)
    np.testing.assert_allclose(found["update_norm"], expected["l2_updates"], rtol=1e-5)
    np.testing.assert_array_equal(found["supervised_tokens_mean"], expected["avg_sup_seqlen"])
    np.testing.assert_array_equal(found["supervised_tokens_max"], expected["max_sup_seqlen"])
    multipliers = [[f(n) for f in opt.schedules.values()] for n in range(10)]
    np.testing.assert_allclose(multipliers, expected["schedules"], rtol=1e-6, atol=1e-8)
    stats = {k.removeprefix("final_stats/"): v for k, v in expected.items() if "final_stats/" in k}
    assert_same_parameters(state.params, stats)
    for name in state.frozen:
        np.testing.assert_array_equal(state.frozen[name], params[name])


def test_colab_equals_big_vision(quick_jit, tiny_paligemma, reference_run):
    params, batches, out = reference_run("colab")
    opt, state, found = train(
        quick_jit,
        tiny_paligemma,
        params,
        batches,
        schedule=[
            ("llm/layers/attn/.*", dict(decay_type="cosine", warmup_percent=0.1)),
            (".*", None),
        ],
        schedule_offset=1,
        total_steps=10,
        optax_name="sgd",
        lr=0.03,
    )
    np.testing.assert_allclose(found["loss"], out["losses"], rtol=1e-5)
    (schedule,) = opt.schedules.values()
    np.testing.assert_allclose([0.03 * schedule(n) for n in range(10)], out["lrs"], rtol=1e-5)
    finals = {k.removeprefix("final/"): v for k, v in out.items() if k.startswith("final/")}
    assert state.trainable.keys() == finals.keys()
    for name, expected in finals.items():
        error = np.abs(state.trainable[name] - expected).max() / np.abs(expected).max()
        assert error <= 1e-5, name

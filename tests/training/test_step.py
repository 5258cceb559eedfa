"""The update step: in place, equal however it is cut up, and harmless when numbers go wrong."""

import functools
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from paligemma_jax.training import loss, optimizer, step

SCHEDULE = [("llm/embedder", None), (".*", dict(decay_type="constant"))]


@functools.cache
def compile_step(
    toy,
    quick_jit,
    optax_name="adam",
    seed=0,
    accumulation_steps=1,
    dropout=0.0,
    mean_over="examples",
):
    """Returns the optimizer and the jitted step of the toy model."""
    opt = optimizer.make_optimizer(
        toy.params(), schedule=SCHEDULE, total_steps=5, lr=0.1, optax_name=optax_name
    )
    train_step = step.make_train_step(
        functools.partial(toy.apply_fn, dropout=dropout),
        toy.logits_fn,
        opt.tx,
        seed=seed,
        accumulation_steps=accumulation_steps,
        mean_over=mean_over,
        chunk=4,
    )
    return opt, quick_jit(train_step)


def make(toy, quick_jit, *, params=None, **settings):
    """Returns the jitted step and a fresh state."""
    opt, train_step = compile_step(toy, quick_jit, **settings)
    return train_step, step.init_state(params or toy.params(), opt.trainable, opt.tx)


def test_training_lowers_the_loss_and_counts_updates(toy, quick_jit):
    train_step, state = make(toy, quick_jit)
    losses = []
    for _ in range(5):
        state, metrics = train_step(state, toy.batch())
        losses.append(float(metrics["loss"]))
    assert losses == sorted(losses, reverse=True)
    assert int(state.step) == 5


NUMBERS = {
    "lr": 0.1,
    "lr_mults": [("llm/out", 0.3), (".*", 1.0)],
    "wd": 0.02,
    "wd_mults": [(".*", 1.0)],
    "grad_clip_norm": 0.05,
    "ema_decay": 0.9,
}
OTHER_NUMBERS = NUMBERS | {"lr": 0.003, "wd": 0.7, "grad_clip_norm": 1.0, "ema_decay": 0.5}


def take_values(toy, *, seed=-3, optax_name="adam", **numbers):
    """Returns (optimizer, a step of it with dropout, its values)."""
    opt = optimizer.make_optimizer(
        toy.params(),
        schedule=SCHEDULE[1:],
        total_steps=5,
        optax_name=optax_name,
        **numbers,
    )
    apply_fn = functools.partial(toy.apply_fn, dropout=0.2)
    train_step = step.make_train_step(apply_fn, toy.logits_fn, opt.tx, seed=seed)
    return opt, train_step, step.run_values(opt, seed=seed)


@pytest.mark.parametrize("optax_name", ["adam", "sgd", "big_vision.momentum_hp"])
def test_rates_and_seed_as_arguments_compute_what_constants_do(toy, optax_name):
    opt, train_step, values = take_values(toy, optax_name=optax_name, **NUMBERS)
    ends = []
    for arguments in ((), (values,)):
        jitted, state = jax.jit(train_step), step.init_state(toy.params(), opt.trainable, opt.tx)
        for number in range(3):
            state, _ = jitted(state, toy.batch(number), number, *arguments)
        ends.append(state)
    for one, other in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_array_equal(one, other)


def test_runs_that_differ_in_rates_and_seed_alone_are_one_program(toy):
    def lower(**settings):
        opt, train_step, values = take_values(toy, **settings)
        state = step.init_state(toy.params(), opt.trainable, opt.tx)
        return jax.jit(train_step).lower(state, toy.batch(), 0, values).as_text()

    text = lower(**NUMBERS)
    assert lower(**OTHER_NUMBERS, seed=2**40 + 1) == text
    assert lower(**OTHER_NUMBERS | {"wd": None}) != text


def test_a_seed_as_an_argument_is_the_seed():
    for seed in (0, 7, -3, 2**31 + 5, 2**32 - 1):
        given = np.uint32(seed & 0xFFFFFFFF)
        keys = [jax.random.key_data(jax.random.key(one)) for one in (seed, given)]
        np.testing.assert_array_equal(*keys)


def test_frozen_weights_stay_where_they_are_in_their_type(toy, quick_jit):
    params = toy.params()
    params["llm/embedder"] = params["llm/embedder"].astype(np.float16)
    train_step, state = make(toy, quick_jit, params=params)
    place = state.frozen["llm/embedder"].unsafe_buffer_pointer()
    state, _ = train_step(state, toy.batch())
    frozen = state.frozen["llm/embedder"]
    assert frozen.unsafe_buffer_pointer() == place and frozen.dtype == np.float16
    np.testing.assert_array_equal(frozen, params["llm/embedder"])


def test_trainable_weights_and_moments_are_float32(toy, quick_jit):
    params = {name: x.astype(np.float16) for name, x in toy.params().items()}
    _, state = make(toy, quick_jit, params=params)
    arrays = jax.tree.leaves((state.trainable, state.opt_state))
    assert {x.dtype for x in arrays if x.ndim} == {np.dtype(np.float32)}


@pytest.mark.parametrize("accumulation_steps", [2, 4])
def test_accumulation_equals_the_big_batch(toy, quick_jit, accumulation_steps):
    big_step, big_state = make(toy, quick_jit, optax_name="sgd")
    small_step, small_state = make(
        toy, quick_jit, optax_name="sgd", accumulation_steps=accumulation_steps
    )
    for seed in range(3):
        big_state, big = big_step(big_state, toy.batch(seed))
        small_state, small = small_step(small_state, toy.batch(seed))
        assert small.keys() == big.keys()
        for key in big:
            np.testing.assert_allclose(small[key], big[key], rtol=1e-6, err_msg=key)
    for name, array in big_state.trainable.items():
        np.testing.assert_allclose(small_state.trainable[name], array, rtol=1e-6, atol=1e-7)


def test_mean_over_tokens_counts_each_token_once_in_micro_batches_too(toy, quick_jit):
    batch = toy.batch()
    counts = batch["mask_loss"][:, 1:].sum(1)
    assert len(set(counts.tolist())) > 1
    settings = dict(optax_name="sgd", mean_over="tokens")
    big_step, big_state = make(toy, quick_jit, **settings)
    losses = loss.example_losses(
        big_state.params, batch, apply_fn=toy.apply_fn, logits_fn=toy.logits_fn
    )
    expected = float((np.asarray(losses) * counts).sum() / counts.sum())
    small_step, small_state = make(toy, quick_jit, accumulation_steps=4, **settings)
    big_state, big = big_step(big_state, batch)
    small_state, small = small_step(small_state, batch)
    assert float(big["loss"]) == pytest.approx(expected, rel=1e-6)
    assert float(losses.mean()) != pytest.approx(expected, rel=1e-3)
    assert float(small["loss"]) == pytest.approx(expected, rel=1e-6)
    for name, array in big_state.trainable.items():
        np.testing.assert_allclose(small_state.trainable[name], array, rtol=1e-6, atol=1e-7)


def test_accumulation_must_divide_the_batch(toy, quick_jit):
    train_step, state = make(toy, quick_jit, accumulation_steps=3)
    with pytest.raises(ValueError, match="accumulation_steps=3 does not divide the batch of 8"):
        train_step(state, toy.batch())


def test_dropout_is_a_function_of_seed_step_and_micro_batch(toy, quick_jit):
    def first_loss(batch, **settings):
        train_step, state = make(toy, quick_jit, dropout=0.5, **settings)
        _, metrics = train_step(state, batch)
        return float(metrics["loss"])

    batch = toy.batch(size=4)
    assert first_loss(batch) == first_loss(batch)
    assert first_loss(batch) != first_loss(batch, seed=1)
    # Each row twice, once in each micro-batch: the same noise in both would give the same loss.
    twice = {name: np.repeat(x, 2, axis=0) for name, x in batch.items()}
    assert first_loss(twice, accumulation_steps=2) != pytest.approx(first_loss(batch), rel=1e-4)


def test_update_that_is_not_finite_changes_nothing(toy, quick_jit):
    train_step, state = make(toy, quick_jit)
    state, _ = train_step(state, toy.batch())
    before = jax.device_get((state.step, state.trainable, state.opt_state))
    broken = toy.batch() | {"text": np.full((8, 7), 99, np.int32)}  # no such token: a NaN loss
    state, metrics = train_step(state, broken)
    assert not metrics["finite"] and not np.isfinite(metrics["loss"])
    jax.tree.map(
        np.testing.assert_array_equal, (state.step, state.trainable, state.opt_state), before
    )
    state, metrics = train_step(state, toy.batch())
    assert metrics["finite"] and int(state.step) == 2


def test_gradient_maxima_are_in_sorted_order_of_names(toy, quick_jit):
    params = toy.params()
    params["llm/out"][:] = 0.0  # cuts llm/mix off, for one step
    train_step, state = make(toy, quick_jit, params=params)
    _, metrics = train_step(state, toy.batch())
    assert sorted(state.trainable) == ["llm/mix", "llm/out"]
    assert metrics["grad_max"][0] == 0.0 and metrics["grad_max"][1] > 0.0


def test_evaluation_loss_leaves_out_rows_that_only_fill_the_batch(toy):
    eval_loss = jax.jit(step.make_eval_loss(toy.apply_fn, toy.logits_fn))
    batch = toy.batch(size=6)
    whole, count = eval_loss(toy.params(), batch)
    assert count == 6
    filled = {name: np.concatenate([x, x[:2]]) for name, x in batch.items()}
    filled["_mask"] = np.arange(8) < 6
    np.testing.assert_allclose(eval_loss(toy.params(), filled), (whole, 6), rtol=1e-6)


SHARDED = """
import importlib.util
import sys

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from paligemma_jax.training import loss, optimizer, step

spec = importlib.util.spec_from_file_location("toy", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
toy = module.Toy


def train(num_devices):
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("data",))
    rows, columns, everywhere = (
        NamedSharding(mesh, PartitionSpec(*axes)) for axes in [("data",), (None, "data"), ()]
    )
    params = toy.params()
    where = {name: columns if name == "llm/mix" else everywhere for name in params}
    opt = optimizer.make_optimizer(
        params, schedule=dict(decay_type="constant"), total_steps=3, lr=0.1, optax_name="adam"
    )
    state = step.init_state(jax.device_put(params, where), opt.trainable, opt.tx)
    moments = [x.sharding for x in jax.tree.leaves(state.opt_state) if x.shape == (4, 4)]
    assert moments == [columns] * 2, moments

    train_step = jax.jit(
        step.make_train_step(
            toy.apply_fn, toy.logits_fn, opt.tx, seed=0, accumulation_steps=2, chunk=4
        ),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda x: x.sharding, state), everywhere),
    )
    program = train_step.lower(state, jax.device_put(toy.batch(), rows)).compile()
    for line in program.as_text().splitlines():
        assert "all-to-all" not in line and "collective-permute" not in line, line
        # What is gathered is the split weight (4 x 4), never rows of the batch.
        assert "all-gather(" not in line or "= f32[4,4]" in line, line
    losses = []
    for seed in range(3):
        state, metrics = program(state, jax.device_put(toy.batch(seed), rows))
        losses.append(float(metrics["loss"]))
    return losses


np.testing.assert_allclose(train(4), train(1), rtol=1e-6)
"""


def test_four_devices_give_the_losses_of_one_and_move_no_rows():
    toy_file = os.path.join(os.path.dirname(__file__), "conftest.py")
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-c", SHARDED, toy_file]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from paligemma_jax.training import ema, optimizer, step


def test_the_average_follows_its_formula_and_changes_no_update():
    tx = optax.chain(optax.scale(-1.0), ema.keep_average(0.5))
    params = {"a": jnp.array([1.0, 2.0])}
    state = tx.init(params)
    expected = np.array([1.0, 2.0])
    for t in (1, 2, 3, 20):
        updates, state = tx.update({"a": jnp.ones(2)}, state, params)
        np.testing.assert_array_equal(updates["a"], [-1.0, -1.0])
        params = optax.apply_updates(params, updates)
        if t <= 3:
            d = min(0.5, t / (t + 9))
            expected = d * expected + (1 - d) * np.asarray(params["a"])
            np.testing.assert_allclose(ema.find(state)["a"], expected, rtol=1e-6)


def test_evaluation_sees_the_average_of_what_is_trained(toy, quick_jit):
    params = toy.params()
    schedule = [("llm/out", dict(decay_type="constant")), (".*", None)]
    opt = optimizer.make_optimizer(
        params, schedule=schedule, total_steps=3, lr=0.1, optax_name="adam", ema_decay=0.9
    )
    train_step = quick_jit(step.make_train_step(toy.apply_fn, toy.logits_fn, opt.tx, seed=0))
    state = step.init_state(params, opt.trainable, opt.tx)
    np.testing.assert_array_equal(state.averaged["llm/out"], params["llm/out"])
    state, _ = train_step(state, toy.batch())
    expected = 0.1 * params["llm/out"] + 0.9 * state.params["llm/out"]
    np.testing.assert_allclose(state.averaged["llm/out"], expected, rtol=1e-6)
    np.testing.assert_array_equal(state.averaged["llm/mix"], params["llm/mix"])
    assert state.averaged.keys() == state.params.keys()
    before = np.asarray(state.averaged["llm/out"])
    broken = toy.batch() | {"text": np.full((8, 7), 99, np.int32)}  # no such token: a NaN loss
    state, metrics = train_step(state, broken)
    assert not metrics["finite"]
    np.testing.assert_array_equal(state.averaged["llm/out"], before)


def test_without_an_average_evaluation_sees_the_parameters(toy):
    opt = optimizer.make_optimizer(
        toy.params(), schedule=dict(decay_type="constant"), total_steps=3, lr=0.1
    )
    state = step.init_state(toy.params(), opt.trainable, opt.tx)
    assert ema.find(state.opt_state) is None
    assert all(state.averaged[name] is x for name, x in state.params.items())


@pytest.mark.parametrize("decay", [1.0, 1.5, -0.1])
def test_a_decay_out_of_range_is_an_error(decay):
    with pytest.raises(ValueError, match="ema_decay="):
        ema.keep_average(decay)

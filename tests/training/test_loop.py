"""The loop: rows in order, hooks when due, the state saved when anything goes wrong."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma_jax.training import loop, optimizer, step


@pytest.fixture(scope="module")
def fresh(toy, quick_jit):
    """Returns (train_step, a function that makes a fresh state)."""
    opt = optimizer.make_optimizer(
        toy.params(), schedule=dict(decay_type="constant"), total_steps=6, lr=0.1, optax_name="sgd"
    )
    train_step = quick_jit(step.make_train_step(toy.apply_fn, toy.logits_fn, opt.tx, seed=0))
    return train_step, lambda: step.init_state(toy.params(), opt.trainable, opt.tx)


def run(toy, fresh, *, state=None, batches=None, total_steps=6, **settings):
    """Returns the last state and the rows."""
    train_step, make_state = fresh
    state = make_state() if state is None else state
    if batches is None:
        batches = (toy.batch(seed) for seed in itertools.count(int(state.step)))
    rows = []
    state = loop.run(
        state, batches, train_step, total_steps=total_steps, log=rows.append, **settings
    )
    return state, rows


def test_every_update_has_a_row_in_order(toy, fresh):
    state, rows = run(toy, fresh)
    assert int(state.step) == 6
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "grad_norm", "examples_per_s", "seconds", "input_wait"} <= rows[0].keys()
    assert all(isinstance(value, float | int) for row in rows for value in row.values())


def test_hooks_run_when_due_and_write_into_the_row(toy, fresh):
    calls = []

    def evaluate(state, step):
        calls.append((step, int(state.step)))
        return {"val": 10.0 * step}

    _, rows = run(toy, fresh, hooks=[loop.Hook(4, evaluate, first=True)])
    assert calls == [(0, 0), (4, 4), (6, 6)]
    assert {row["step"]: row["val"] for row in rows if "val" in row} == {0: 0.0, 4: 40.0, 6: 60.0}


def test_a_row_that_is_enough_ends_the_run_with_its_update(toy, fresh):
    hook = loop.Hook(2, lambda _, step: {"val": float(step)})
    saved = []
    state, rows = run(
        toy,
        fresh,
        hooks=[hook],
        is_enough=lambda row: row.get("val", 0) >= 4,
        save=lambda _, row: saved.append(row["step"]),
    )
    assert int(state.step) == 4
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert saved == [2, 4]


def test_the_row_of_the_last_update_is_asked_too_whether_it_is_enough(toy, fresh):
    asked = []
    run(toy, fresh, total_steps=2, is_enough=lambda row: asked.append(row["step"]))
    assert asked == [2]


def test_hook_can_run_at_the_end_alone(toy, fresh):
    calls = []
    hook = loop.Hook(0, lambda _, step: calls.append(step) or {})
    run(toy, fresh, hooks=[hook])
    assert calls == [6]


def test_run_that_goes_on_equals_one_that_never_stopped(toy, fresh):
    whole, rows = run(toy, fresh)
    half, _ = run(toy, fresh, total_steps=3)
    joined, later_rows = run(toy, fresh, state=half)
    assert [row["step"] for row in later_rows] == [4, 5, 6]
    assert [row["loss"] for row in later_rows] == [row["loss"] for row in rows[3:]]
    jax.tree.map(np.testing.assert_array_equal, joined, whole)


def test_finished_run_only_repeats_its_last_hooks(toy, fresh):
    state, _ = run(toy, fresh)
    hook = loop.Hook(2, lambda *_: {"val": 1.0})
    _, rows = run(toy, fresh, state=state, hooks=[hook])
    assert rows == [{"step": 6, "val": 1.0}]


def test_state_beyond_the_end_is_an_error(toy, fresh):
    state, _ = run(toy, fresh)
    with pytest.raises(ValueError, match="6 updates, more than total_steps=5"):
        run(toy, fresh, state=state, total_steps=5)


def test_progress_is_told_each_update(toy, fresh):
    told = []
    run(toy, fresh, progress=told.append)
    assert told == [1, 2, 3, 4, 5, 6]


def test_batches_that_end_early_are_an_error_and_the_state_is_rescued(toy, fresh):
    rescued = []
    with pytest.raises(ValueError, match="the batches ended before update 4 of 6"):
        run(toy, fresh, batches=[toy.batch(n) for n in range(3)], rescue=rescued.append)
    assert [int(state.step) for state in rescued] == [3]


def test_loss_that_is_not_finite_stops_the_run_with_the_last_good_state(toy, fresh):
    bad = toy.batch() | {"text": np.full((8, 7), 99, np.int32)}  # no such token
    batches = [toy.batch(0), toy.batch(1), bad]
    rescued, hooked = [], []
    hook = loop.Hook(3, lambda _, step: hooked.append(step) or {})
    with pytest.raises(FloatingPointError, match="step 3: loss is nan"):
        run(toy, fresh, batches=batches, rescue=rescued.append, hooks=[hook])
    assert [int(state.step) for state in rescued] == [2]
    assert all(np.isfinite(x).all() for x in rescued[0].trainable.values())
    assert not hooked


def test_state_before_a_failed_update_is_rescued_though_the_next_was_started(toy, fresh):
    straight, _ = run(toy, fresh, total_steps=2)
    bad = toy.batch() | {"text": np.full((8, 7), 99, np.int32)}
    batches = [toy.batch(0), toy.batch(1), bad, toy.batch(3), toy.batch(4)]
    rescued = []
    with pytest.raises(FloatingPointError, match="step 3: loss is nan"):
        run(toy, fresh, batches=batches, rescue=rescued.append)
    jax.tree.map(np.testing.assert_array_equal, rescued[0], straight)


def test_rows_of_all_updates_are_logged_before_the_state_is_rescued(toy, fresh):
    rows, seen = [], []
    train_step, make_state = fresh
    with pytest.raises(ValueError, match="ended before update 3"):
        loop.run(
            make_state(),
            [toy.batch(0), toy.batch(1)],
            train_step,
            total_steps=6,
            log=rows.append,
            rescue=lambda state: seen.append((int(state.step), len(rows))),
        )
    assert seen == [(2, 2)]


def test_state_is_saved_when_due_after_hooks_and_at_the_end_with_its_row_logged(toy, fresh):
    rows, calls = [], []
    train_step, make_state = fresh
    loop.run(
        make_state(),
        (toy.batch(n) for n in range(7)),
        train_step,
        total_steps=7,
        log=rows.append,
        hooks=[loop.Hook(3, lambda *_: {"val": 1.0}, last=False)],
        save=lambda state, row: calls.append((int(state.step), row is rows[-1], "val" in row)),
        save_every=2,
    )
    assert calls == [(n, True, n % 3 == 0) for n in (2, 3, 4, 6, 7)]


def test_run_that_is_asked_to_stop_ends_with_the_running_update(toy, fresh):
    answers = iter([False, False, True])
    state, rows = run(toy, fresh, stop=lambda: next(answers))
    assert int(state.step) == 3
    assert [row["step"] for row in rows] == [1, 2, 3]
    state, rows = run(toy, fresh, state=state)
    whole, _ = run(toy, fresh)
    jax.tree.map(np.testing.assert_array_equal, state, whole)


def test_error_of_a_rescue_does_not_hide_the_first(toy, fresh):
    def rescue(state):
        raise OSError("disk full")

    with pytest.raises(ValueError, match="ended before update 1") as caught:
        run(toy, fresh, batches=[], rescue=rescue)
    assert "disk full" in caught.value.__notes__[0]


def test_group_that_learns_nothing_stops_the_run_at_its_first_update(toy, fresh):
    batch = toy.batch()
    batch["mask_loss"] = np.zeros_like(batch["mask_loss"])
    with pytest.raises(ValueError, match="step 1: no token of the batch is supervised"):
        run(toy, fresh, batches=[batch] * 3, groups={".*": ("llm/mix",)})


def test_packed_metrics_give_the_same_rows_in_one_transfer(monkeypatch):
    metrics = {
        "loss": jnp.float32(1.5),
        "finite": jnp.array(True),
        "grad_max": jnp.array([0.25, jnp.nan], jnp.float32),
    }
    packed = jax.jit(loop.pack)(metrics)
    assert [x.shape for x in jax.tree.leaves(packed)] == [(4,)]
    transfers = []
    get = jax.device_get
    monkeypatch.setattr(step.jax, "device_get", lambda x: transfers.append(x) or get(x))
    host = loop.to_host(packed)
    assert [x.shape for x in transfers] == [(4,)]
    assert host.keys() == metrics.keys()
    for name, value in loop.to_host(metrics).items():
        np.testing.assert_array_equal(host[name], value)
        assert host[name].shape == value.shape


def test_the_next_batch_is_placed_before_the_numbers_of_the_step_before_are_read():
    events = []

    class Loss:
        def __init__(self, number):
            self.number = number

        def __array__(self, dtype=None, copy=None):
            events.append(f"read {self.number}")
            return np.array(1.0, np.float32)

    def batches():
        for number in range(1, 4):
            events.append(f"placed {number}")
            yield {"text": np.zeros((2, 3), np.int32)}

    def train_step(state, batch, number):
        del batch
        events.append(f"started {number + 1}")
        others = dict.fromkeys(("grad_norm", "update_norm", "param_norm"), jnp.float32(0))
        known = {"finite": jnp.array(True), "grad_max": jnp.ones(1)}
        known["supervised_tokens_max"] = jnp.float32(1)
        return state, {"loss": Loss(number + 1), **others, **known}

    state = step.TrainState(
        step=jnp.int32(0), trainable={"w": jnp.zeros(1)}, frozen={}, opt_state=()
    )
    loop.run(state, batches(), train_step, total_steps=3, log=lambda _: None)
    assert events.index("placed 3") < events.index("started 3") < events.index("read 2")
    assert events.index("placed 2") < events.index("started 2") < events.index("read 1")

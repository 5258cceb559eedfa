"""An update in the backward pass is the update behind it, and leaves nothing torn to go on with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma_jax.models.common import layer_update
from paligemma_jax.models.paligemma import as_family, paligemma, variants
from paligemma_jax.training import optimizer, step

V, T = 40, 8
MODEL = variants.make("tiny/14", "tiny", res=28, vocab_size=V, final_logits_softcap=0.0)
LAYERS = ("llm/layers/", "img/Transformer/encoderblock/")
# Softmax ignores what is added to all keys: this gradient is rounding noise, of which Adam makes
# steps of full size.
NOISE = "key/bias"


def make(quick_jit, *, trainable, remat, in_backward, dropout=0.0, **settings):
    """Returns (the jitted step, a fresh state)."""
    params = paligemma.init(jax.random.key(0), MODEL)
    rules = [(trainable, {"decay_type": "cosine"})]
    rules += [] if trainable == ".*" else [(".*", None)]
    opt = optimizer.make_optimizer(params, schedule=rules, total_steps=8, **settings)
    compute = paligemma.Compute(remat=remat, dropout=dropout)
    functions = as_family.Model(MODEL).functions(compute, cache_dtype="float32")
    inside = [name for name in opt.trainable if name.startswith(LAYERS)] if in_backward else []
    train_step = step.make_train_step(
        functions.apply,
        functions.logits,
        opt.tx,
        seed=1,
        chunk=4,
        loss_scale=8.0,
        parts={"img": [name for name in opt.trainable if name.startswith("img/")]},
        in_backward=inside,
    )
    return quick_jit(train_step), step.init_state(params, opt.trainable, opt.tx), opt


def batch(seed=0, size=2):
    rng = np.random.default_rng(seed)
    answer = np.broadcast_to((np.arange(T + 1) >= 4).astype(np.int32), (size, T + 1))
    return dict(
        image=rng.integers(0, 255, (size, 1, 28, 28, 3)).astype(np.uint8),
        mask_image=np.ones((size, 1), bool),
        text=rng.integers(1, V, (size, T + 1)).astype(np.int32),
        mask_ar=answer,
        mask_loss=answer,
        mask_input=np.ones_like(answer),
    )


CASES = {
    "all, Adam": dict(trainable=".*", optax_name="scale_by_adam", lr=1e-3, wd=0.1, ema_decay=0.9),
    "attention, SGD": dict(trainable="llm/layers/attn/.*", optax_name="sgd", lr=0.1),
    "vision, 16-bit momentum": dict(
        trainable="img/.*", optax_name="big_vision.momentum_hp", lr=0.1
    ),
}
HALF_A_PLACE = 1e-2  # of bfloat16
# A momentum that rounds the other way moves a weight by a 256th of its step, in each of three.
EXACT = {"vision, 16-bit momentum": 1e-3}


@pytest.mark.parametrize(
    ("case", "remat", "dropout"),
    [
        pytest.param("all, Adam", "segment_inputs_saveable", 0.0, marks=pytest.mark.slow),
        ("attention, SGD", "nothing_saveable", 0.3),
        pytest.param("vision, 16-bit momentum", "nothing_saveable", 0.0, marks=pytest.mark.slow),
        pytest.param("all, Adam", "nothing_saveable", 0.0, marks=pytest.mark.slow),
    ],
)
def test_losses_weights_and_moments_are_those_of_an_update_behind(quick_jit, case, remat, dropout):
    ends, rows = [], []
    for in_backward in (False, True):
        how = {"in_backward": in_backward, "remat": remat, "dropout": dropout}
        train_step, state, opt = make(quick_jit, **how, **CASES[case])
        values = step.run_values(opt, seed=1)
        rows.append([])
        for number in range(3):
            state, metrics = train_step(state, batch(number), number, values)
            rows[-1].append(jax.device_get(metrics))
        ends.append({"weights": state.trainable, "moments": state.opt_state, "step": state.step})
    for before, after in zip(*rows, strict=True):
        assert before.keys() == after.keys()
        for name in before:
            np.testing.assert_allclose(after[name], before[name], 2e-5, 1e-7, err_msg=name)
    paths = jax.tree_util.tree_leaves_with_path(ends[0])
    assert jax.tree.structure(ends[0]) == jax.tree.structure(ends[1])
    for (path, before), after in zip(paths, jax.tree.leaves(ends[1]), strict=True):
        name = jax.tree_util.keystr(path)
        if NOISE not in name:
            scale = np.abs(np.asarray(before, np.float32)).max()
            exact = EXACT.get(case, 1e-5) if before.dtype == jnp.float32 else HALF_A_PLACE
            np.testing.assert_allclose(
                *(np.asarray(x, np.float32) for x in (after, before)),
                rtol=0,
                atol=exact * scale,
                err_msg=name,
            )


@pytest.fixture
def attention(quick_jit):
    how = {"remat": "nothing_saveable", "in_backward": True}
    train_step, state, _ = make(quick_jit, **how, **CASES["attention, SGD"])
    return train_step, state


def spoil(state, name):
    """Returns a state with an infinity in a weight."""
    part = state.trainable if name in state.trainable else state.frozen
    part[name] = jnp.asarray(part[name]).at[(0,) * part[name].ndim].set(jnp.inf)
    return state


def test_nothing_changes_where_the_loss_is_not_finite_or_the_step_is_another(attention):
    train_step, state = attention
    expected = jax.device_get(state.trainable)
    state, metrics = train_step(state, batch(), 3)  # it has 0 updates
    assert metrics["finite"] and int(state.step) == 0
    for name, x in state.trainable.items():
        np.testing.assert_array_equal(x, expected[name])
    state, metrics = train_step(spoil(state, "llm/final_norm/scale"), batch(), 0)
    assert not metrics["finite"] and int(state.step) == 0
    for name, x in state.trainable.items():
        np.testing.assert_array_equal(x, expected[name])


def test_a_state_that_is_updated_in_part_holds_a_nan(quick_jit):
    """The root of the lowest layer's weight, 0, has no gradient; those above it are updated."""
    rng = np.random.default_rng(0)
    params = {"layers": np.float32([0.0, 0.5, 0.5]), "out": rng.normal(size=(V, V))}
    opt = optimizer.make_optimizer(
        params, schedule={"decay_type": "constant"}, total_steps=4, optax_name="sgd", lr=0.1
    )

    def apply_fn(params, inputs, rng):
        def layer(w, x, rngs):
            return x * (1.0 + jnp.sqrt(w))

        x = jax.nn.one_hot(inputs["text"], V)
        return layer_update.run(layer, 1, params["layers"], {}, x)

    train_step = step.make_train_step(
        apply_fn,
        lambda params, hidden: hidden @ params["out"],
        opt.tx,
        seed=0,
        chunk=4,
        in_backward=["layers"],
    )
    state = step.init_state(params, opt.trainable, opt.tx)
    state, metrics = quick_jit(train_step)(state, batch(), 0)
    assert np.isfinite(metrics["loss"]) and not metrics["finite"]
    assert int(state.step) == 0
    np.testing.assert_array_equal(state.trainable["out"], params["out"].astype(np.float32))
    assert np.isnan(state.trainable["layers"]).any()


def test_a_weight_that_no_layer_reads_is_an_error(quick_jit):
    params = {"layers": np.ones(3, np.float32), "out": np.ones((V, V), np.float32)}
    opt = optimizer.make_optimizer(
        params, schedule={"decay_type": "constant"}, total_steps=4, optax_name="sgd", lr=0.1
    )
    train_step = step.make_train_step(
        lambda _params, inputs, _rng: jax.nn.one_hot(inputs["text"], V),
        lambda params, hidden: hidden @ params["out"],
        opt.tx,
        seed=0,
        in_backward=["layers"],
    )
    state = step.init_state(params, opt.trainable, opt.tx)
    with pytest.raises(ValueError, match="the backward pass does not come through layers"):
        quick_jit(train_step)(state, batch(), 0)

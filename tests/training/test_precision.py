"""Twenty steps in 16 bits are the steps of float32: losses within one percent."""

import functools

import numpy as np
import pytest

from paligemma_jax.models.paligemma import paligemma, variants
from paligemma_jax.training import optimizer, step

STEPS = 20


@pytest.fixture(scope="module")
def losses(reference_run, quick_jit):
    """Returns the losses of a run in a compute type, from big_vision's tiny weights."""
    params, batches, _ = reference_run("colab")
    model = variants.make("tiny/14", "tiny", res=56, vocab_size=1400, final_logits_softcap=0.0)

    @functools.cache
    def run(dtype: str, loss_scale: float | None = None) -> np.ndarray:
        compute = paligemma.Compute(dtype=dtype)

        def apply_fn(params, inputs, rng):
            keys = ("image", "mask_image", "text", "mask_ar", "mask_input")
            read = (inputs[key] for key in keys)
            return paligemma.apply(params, *read, model=model, compute=compute, rng=rng)

        made = optimizer.make_optimizer(
            params,
            schedule=[("llm/layers/attn/.*", dict(decay_type="constant")), (".*", None)],
            total_steps=STEPS,
            optax_name="sgd",
            lr=0.1,
        )
        train_step = quick_jit(
            step.make_train_step(
                apply_fn,
                functools.partial(paligemma.logits, model=model),
                made.tx,
                seed=0,
                loss_scale=compute.loss_scale if loss_scale is None else loss_scale,
            )
        )
        state, found = step.init_state(params, made.trainable, made.tx), []
        for number in range(STEPS):
            state, metrics = train_step(state, batches[number % len(batches)])
            assert metrics["finite"]
            found.append(float(metrics["loss"]))
        return np.array(found)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_losses_stay_within_one_percent_of_float32(losses, dtype):
    exact = losses("float32")
    assert exact[-1] < 0.9 * exact[0]  # it learns
    np.testing.assert_allclose(losses(dtype), exact, rtol=0.01)


def test_the_scale_of_the_loss_changes_nothing_in_float32(toy, quick_jit):
    results = []
    for scale in (1.0, 2.0**12):
        made = optimizer.make_optimizer(
            toy.params(),
            schedule=dict(decay_type="constant"),
            total_steps=1,
            lr=0.1,
            optax_name="sgd",
        )
        train_step = quick_jit(
            step.make_train_step(toy.apply_fn, toy.logits_fn, made.tx, seed=0, loss_scale=scale)
        )
        state = step.init_state(toy.params(), made.trainable, made.tx)
        results.append(train_step(state, toy.batch(0)))
    (state, metrics), (other, other_metrics) = results
    assert metrics["loss"] == other_metrics["loss"]
    for name, array in state.trainable.items():
        np.testing.assert_array_equal(array, other.trainable[name])

"""The loss at supervised positions equals the plain one over all positions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma_jax.training import loss

B, T, D, V = 4, 9, 5, 13


def logits_fn(params, hidden):
    return hidden @ params["w"]


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 2, (B, T))
    mask[1] = 0  # an example without supervised token
    mask[2] = 1
    return dict(
        params={"w": rng.normal(size=(D, V)).astype(np.float32)},
        hidden=rng.normal(size=(B, T, D)).astype(np.float32),
        targets=rng.integers(0, V, (B, T)),
        mask=mask,
    )


def dense(params, hidden, targets, mask, label_smoothing):
    """As big_vision: all logits, one-hot targets, mean per example."""
    logp = jax.nn.log_softmax(logits_fn(params, hidden))
    hot = jax.nn.one_hot(targets, V)
    if label_smoothing:
        hot = jnp.where(hot == 1, 1 - label_smoothing, label_smoothing / (V - 1))
    total = -jnp.sum(jnp.sum(logp * hot, -1) * mask, -1)
    return total / jnp.clip(jnp.sum(mask, -1), 1)


@pytest.mark.parametrize(("chunk", "label_smoothing"), [(1, 0.0), (4, 0.1), (16, 0.0)])
def test_loss_and_gradients_equal_the_dense_loss(problem, label_smoothing, chunk):
    def chunked(params, hidden):
        return loss.token_losses(
            params,
            hidden,
            problem["targets"],
            problem["mask"],
            logits_fn=logits_fn,
            label_smoothing=label_smoothing,
            chunk=chunk,
        )

    def expected(params, hidden):
        return dense(params, hidden, problem["targets"], problem["mask"], label_smoothing)

    def value_and_grads(fn):
        def total(*args):
            losses = fn(*args)
            return losses @ jnp.arange(1.0, B + 1), losses

        return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))

    args = problem["params"], problem["hidden"]
    found, wanted = value_and_grads(chunked)(*args), value_and_grads(expected)(*args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, wanted)


def test_example_without_supervised_token_has_loss_zero(problem):
    args = (problem[key] for key in ("params", "hidden", "targets", "mask"))
    losses = loss.token_losses(*args, logits_fn=logits_fn)
    assert losses[1] == 0.0
    assert np.all(np.delete(losses, 1) > 0)


def test_logits_exist_for_supervised_chunks_only(problem):
    computed = []

    def recording_logits_fn(params, hidden):
        jax.debug.callback(lambda x: computed.append(x.shape), hidden)
        return logits_fn(params, hidden)

    mask = np.zeros((B, T), np.int32)
    mask[:, -3:] = 1  # the last three of nine positions, found by moving them to the front
    losses = loss.token_losses(
        problem["params"],
        problem["hidden"],
        problem["targets"],
        mask,
        logits_fn=recording_logits_fn,
        chunk=2,
    )
    jax.block_until_ready(losses)
    jax.effects_barrier()
    assert computed == [(B, 2, D)] * 2


def test_model_reads_all_but_the_last_token_and_predicts_all_but_the_first():
    batch = dict(
        text=np.array([[2, 5, 9, 7, 1, 0, 0]]),
        mask_ar=np.array([[0, 0, 0, 1, 1, 1, 1]]),
        mask_loss=np.array([[0, 0, 0, 1, 1, 0, 0]]),
        mask_input=np.array([[1, 1, 1, 1, 1, 0, 0]]),
        image=np.zeros((1, 2)),
    )
    seen = {}

    def apply_fn(params, inputs, rng):
        seen.update(inputs)
        return jax.nn.one_hot(inputs["text"], V)

    # Row i of the table holds the logits after token i.
    table = np.random.default_rng(0).normal(size=(V, V)).astype(np.float32)
    found = loss.example_losses({"w": table}, batch, apply_fn=apply_fn, logits_fn=logits_fn)
    logp = jax.nn.log_softmax(table)
    np.testing.assert_allclose(found, [-(logp[9, 7] + logp[7, 1]) / 2], rtol=1e-6)
    assert {name: x.shape for name, x in seen.items()} == {
        "text": (1, 6),
        "mask_ar": (1, 6),
        "mask_input": (1, 6),
        "image": (1, 2),
    }


def test_losses_equal_those_of_big_visions_perplexity_evaluator(reference_folder):
    case = json.loads((reference_folder / "answer_scores.json").read_text())["losses"]
    text, mask = np.array(case["text"]), np.array(case["mask_loss"])
    found = loss.token_losses(
        {},
        np.float32(case["logits"]),
        text[:, 1:],
        mask[:, 1:],
        logits_fn=lambda _, logits: logits,
        chunk=16,
    )
    np.testing.assert_allclose(found, case["avg"], rtol=1e-6)

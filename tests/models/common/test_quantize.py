"""Weights in 8 and 4 bits: what they stand for, and a model that computes with them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma_jax.models.common import quantize
from paligemma_jax.models.paligemma import as_family, paligemma, variants
from paligemma_jax.params import lora as lora_lib
from paligemma_jax.params import names

QUANTIZABLE = as_family.NAMES.quantizable


def test_nf4_is_that_of_bitsandbytes(reference_arrays):
    expected = reference_arrays("nf4")
    w = expected["w"]
    for found in (
        quantize.quantize(jnp.asarray(w), "nf4", unit=w.shape),
        quantize.quantize_on_host(w, "nf4", unit=w.shape),
    ):
        np.testing.assert_array_equal(found.codes, expected["codes"])
        np.testing.assert_array_equal(found.scales, expected["scales"])
        # A mean of 300 numbers, added in another order.
        np.testing.assert_allclose(found.offset, expected["offset"], rtol=3e-7)
        np.testing.assert_allclose(found.outer, expected["outer"], rtol=3e-7)
        values = np.asarray(found.astype(jnp.float32))
        np.testing.assert_allclose(values, expected["values"], rtol=0, atol=1e-7)


def random_weight(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape, scale=0.02).astype(np.float32)


@pytest.mark.parametrize(("kind", "num_bytes"), [("nf4", 0.516), ("int8", 1.063)])
def test_it_takes_as_many_bytes_as_said(kind, num_bytes):
    w = random_weight(3, 64, 256)
    found = quantize.quantize(jnp.asarray(w), kind, unit=w.shape[1:])
    assert found.shape == w.shape and found.size == w.size
    assert found.nbytes / w.size == pytest.approx(num_bytes, abs=1e-3)


def test_int8_is_within_half_a_step_of_its_block():
    w = random_weight(8, 64)
    found = quantize.quantize(jnp.asarray(w), "int8", unit=w.shape).astype(jnp.float32)
    half_a_step = np.abs(w).max(axis=1, keepdims=True) / 254
    assert (np.abs(found - w) <= half_a_step * (1 + 1e-4)).all()


@pytest.mark.parametrize("kind", quantize.KINDS)
def test_zeros_stay_zeros(kind):
    w = jnp.zeros((2, 64)).at[1].set(0.5)
    found = quantize.quantize(w, kind, unit=(2, 64)).astype(jnp.float32)
    np.testing.assert_array_equal(found[0], 0.0)


@pytest.mark.parametrize("kind", quantize.KINDS)
def test_a_stack_is_its_weights_one_by_one(kind):
    w = random_weight(2, 16, 64)
    make = jax.jit(lambda w: quantize.quantize(w, kind, unit=(16, 64)))
    decode = jax.jit(lambda w: w.astype(jnp.float32))
    whole, host = make(w), quantize.quantize_on_host(w, kind, unit=(16, 64))
    assert host.codes.shape == whole.codes.shape and host.unit == whole.unit
    for layer in range(2):
        alone = decode(make(w[layer]))
        sliced = jax.tree.map(lambda x, i=layer: x[i], whole)
        assert sliced.shape == (16, 64)
        np.testing.assert_array_equal(decode(sliced), alone)
        np.testing.assert_array_equal(decode(host)[layer], alone)


@pytest.mark.parametrize("kind", quantize.KINDS)
def test_rows_are_those_of_the_whole(kind):
    w = random_weight(300, 2, 64)
    ids = np.array([[0, 299, 17], [128, 127, 3]])

    @jax.jit
    def run(w):
        found = quantize.quantize(w, kind, unit=w.shape)
        dtype = jnp.float32
        return found.astype(dtype), found.take(ids, dtype=dtype), found.rows(133, 9, dtype=dtype)

    whole, taken, sliced = map(np.asarray, run(w))
    np.testing.assert_array_equal(taken, whole[ids])
    np.testing.assert_array_equal(sliced, whole[133:142])


def test_candidates_are_large_weights_that_are_whole_blocks():
    lora = lora_lib.Lora("llm/layers/.*", 4, 4.0)
    model = variants.make("tiny/14", "tiny2", res=56, vocab_size=9)
    found = QUANTIZABLE.candidates(paligemma.shapes(dataclasses.replace(model, lora=lora)))
    assert "llm/embedder/input_embedding" in found
    assert {name.split("/")[-1] for name in found} >= {"w", "kernel", "linear", "gating_einsum"}
    excluded = ("scale", "bias", "pos_embedding", *names.FACTORS)
    assert not any(name.endswith(excluded) for name in found)
    assert "img/embedding/kernel" not in found
    # A row of 96 numbers is one and a half blocks.
    mini = variants.make("mini/14", "mini", res=56, vocab_size=64)
    assert "llm/embedder/input_embedding" not in QUANTIZABLE.candidates(paligemma.shapes(mini))


def quantized(params, kind):
    """Returns parameters with all candidates quantized, and with what these stand for."""
    units = {n: QUANTIZABLE.unit_of(n, params[n].shape) for n in QUANTIZABLE.candidates(params)}

    @jax.jit
    def run(chosen):
        held = {n: quantize.quantize(w, kind, unit=units[n]) for n, w in chosen.items()}
        return held, {n: w.astype(jnp.float32) for n, w in held.items()}

    held, decoded = run({name: params[name] for name in units})
    return {**params, **held}, {**params, **decoded}


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.03), ("nf4", 0.45)])
def test_logits_are_those_of_what_is_stored_and_near_the_base(
    kind, error, params, inputs, model, run_logits
):
    stored, dense = quantized(params, kind)
    found, exact = (run_logits(weights, inputs, model=model) for weights in (stored, dense))
    np.testing.assert_allclose(found, exact, rtol=0, atol=2e-4)
    base = run_logits(params, inputs, model=model)
    seen = inputs.mask_input.astype(bool)
    distance = np.sqrt(np.mean(np.square(found - base)[seen]) / np.mean(np.square(base)[seen]))
    assert distance < error


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["nothing_saveable", "none"])
def test_gradients_of_factors_are_those_on_what_is_stored(
    remat, params, inputs, model, monkeypatch
):
    monkeypatch.setattr(
        "paligemma_jax.models.common.projections.PIECE_BYTES", 2**14
    )  # the table: 22 pieces
    lora = lora_lib.Lora("llm/layers/.*", 4, 8.0)
    model = dataclasses.replace(model, lora=lora)
    stored, dense = quantized(params, "nf4")
    rng = np.random.default_rng(0)
    factors = {
        name: jnp.asarray(rng.normal(size=x.shape, scale=0.1), jnp.float32)
        for name, x in paligemma.shapes(model).items()
        if names.is_factor(name)
    }

    @jax.jit
    def gradients(factors, base):
        def total(factors):
            weights = {**base, **factors}
            compute = paligemma.Compute(remat=remat)
            hidden = paligemma.apply(weights, *inputs, model=model, compute=compute)
            return jnp.sum(jnp.tanh(paligemma.logits(weights, hidden[:, -4:], model=model)))

        return jax.grad(total)(factors)

    found, expected = (gradients(factors, base) for base in (stored, dense))
    for name in factors:
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-4 * scale)


@pytest.mark.slow
def test_decoding_reads_quantized_blocks(params, inputs, model):
    stored, dense = quantized(params, "nf4")

    @jax.jit
    def run(params):
        compute = paligemma.Compute()
        given = (inputs.image, inputs.mask_image, inputs.text[:, :6])
        first, past = paligemma.prefill(
            params,
            *given,
            np.zeros((5, 6), bool),
            np.ones((5, 6), bool),
            model=model,
            compute=compute,
            cache_len=24,
            cache_dtype="float32",
        )
        token = jnp.full(5, 3)
        second, _ = paligemma.decode_step(params, past, token, model=model, compute=compute)
        return first, second

    blocks = {name: x for name, x in stored.items() if not name.startswith(paligemma.LAYERS)}
    found = run({**blocks, **paligemma.unstack(stored)})
    for one, other in zip(found, run(dense), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-4)

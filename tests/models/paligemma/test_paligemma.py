"""The joined model: logits against big_vision's, images and padding that must not be seen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma_jax.models.paligemma import paligemma, variants

FORWARD = {
    # case -> (language model, file with the other weights, max difference of logits)
    "pg1": ("tiny", "pg1", 1e-4),
    "pg2": ("tiny2", "pg2", 5e-4),
    "pg2_27b": ("tiny2_27b", "pg2", 5e-4),
    "mha": ("tiny_mha", "pg1", 1e-4),
}


@pytest.mark.parametrize("case", FORWARD)
def test_logits_equal_big_vision(load_reference, inputs, run_logits, case):
    llm, base, tolerance = FORWARD[case]
    own, _, out = load_reference(f"forward_{case}")
    model = variants.make("tiny/14", llm, res=56, vocab_size=1400, final_logits_softcap=0.0)
    shared = load_reference(f"forward_{base}")[0]
    params = {name: own.get(name, shared.get(name)) for name in paligemma.shapes(model)}
    expected = out["text_logits"]
    if "sees_padding" in out:  # big_vision lets some valid positions see padding; ours never do.
        expected[out["sees_padding"]] = out["text_logits_masked_at"]
    found = run_logits(params, inputs, model=model)
    assert found.shape == expected.shape  # all pieces of the vocabulary
    valid = inputs.mask_input == 1
    np.testing.assert_allclose(found[valid], expected[valid], rtol=0, atol=tolerance)


def test_final_softcap_bounds_the_logits(params, model):
    capped = dataclasses.replace(
        model, llm=dataclasses.replace(model.llm, final_logits_softcap=3.0)
    )
    hidden = np.random.default_rng(0).normal(size=(2, 3, 64)).astype(np.float32)
    raw = paligemma.logits(params, hidden, model=model)
    assert np.abs(raw).max() > 3
    found = paligemma.logits(params, hidden, model=capped)
    np.testing.assert_allclose(found, 3 * np.tanh(raw / 3), rtol=0, atol=1e-5)


def test_an_unused_image_slot_changes_nothing(params, inputs, model, run_logits):
    noise = np.random.default_rng(1).integers(0, 256, inputs.image.shape, np.uint8)
    for slots in ([inputs.image, noise], [noise, inputs.image]):
        used = np.array([[slot is inputs.image for slot in slots]] * 5)
        two = dataclasses.replace(inputs, image=np.concatenate(slots, 1), mask_image=used)
        found = run_logits(params, two, model=model)
        assert_same_where_valid(found, run_logits(params, inputs, model=model), inputs)


def test_without_images_only_text_is_seen(params, inputs, model, run_logits):
    none = dataclasses.replace(inputs, mask_image=np.zeros((5, 1), bool))
    text_alone = dataclasses.replace(
        inputs, image=inputs.image[:, :0], mask_image=np.zeros((5, 0), bool)
    )
    found = run_logits(params, none, model=model)
    assert_same_where_valid(found, run_logits(params, text_alone, model=model), inputs)


def test_every_used_image_is_seen_in_its_order(params, inputs, model, run_logits):
    def with_images(first, second):
        image = np.stack([inputs.image[first, 0], inputs.image[second, 0]], axis=1)
        two = dataclasses.replace(inputs, image=image, mask_image=np.ones((5, 2), bool))
        return run_logits(params, two, model=model)[inputs.mask_input == 1]

    own, other = np.arange(5), np.roll(np.arange(5), 1)
    assert np.abs(with_images(own, other) - with_images(other, own)).max() > 0.1
    assert np.abs(with_images(own, other) - with_images(own, own)).max() > 0.1


def test_padding_does_not_change_logits(params, inputs, model, run_logits):
    padding = inputs.mask_input == 0
    junk = dataclasses.replace(
        inputs,
        text=np.where(padding, 7, inputs.text),
        mask_ar=np.where(padding, 1, inputs.mask_ar),
    )
    expected = run_logits(params, inputs, model=model)
    assert_same_where_valid(run_logits(params, junk, model=model), expected, inputs)


def test_16_bit_weights_are_upcast_where_they_are_used(params, inputs, model, run_logits):
    """Exactly: float32 compute on float16 weights is float32 compute on their values."""
    stored = {name: w.astype(np.float16) for name, w in params.items()}
    upcast = {name: w.astype(np.float32) for name, w in stored.items()}
    found = run_logits(stored, inputs, model=model)
    np.testing.assert_array_equal(found, run_logits(upcast, inputs, model=model))


def test_bfloat16_compute_is_close_to_float32(params, inputs, model, run_logits):
    """Within 4% of the largest logit: bfloat16 keeps 8 bits, and errors add up over 6 layers."""
    bf16 = paligemma.Compute(dtype="bfloat16", remat="none")
    stored = {name: jnp.asarray(w, jnp.bfloat16) for name, w in params.items()}
    upcast = {name: w.astype(jnp.float32) for name, w in stored.items()}
    valid = inputs.mask_input == 1
    exact = run_logits(upcast, inputs, model=model)[valid]
    found = run_logits(stored, inputs, model=model, compute=bf16)
    assert found.dtype == np.float32
    assert np.abs(found[valid] - exact).max() < 0.04 * np.abs(exact).max()


def test_dropout_acts_where_an_rng_is_given(params, inputs, model, run_logits):
    compute = paligemma.Compute(remat="none", dropout=0.1, img_dropout=0.1)

    def run(seed):
        rng = None if seed is None else jax.random.key(seed)
        return run_logits(params, inputs, model=model, compute=compute, rng=rng)

    np.testing.assert_array_equal(run(None), run_logits(params, inputs, model=model))
    np.testing.assert_array_equal(run(1), run(1))
    assert np.abs(run(1) - run(2)).max() > 0.1
    assert np.abs(run(1) - run(None)).max() > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image.astype(np.float32), "must be uint8"),
        (lambda image: image[:, 0], r"expected \[B, M, R, R, 3\]"),
        (lambda image: image[:, :, :42, :42], r"expected \[B, 56, 56, 3\]"),
    ],
)
def test_a_wrong_image_is_an_error(params, inputs, model, change, message):
    compute = paligemma.Compute()
    with pytest.raises(ValueError, match=message):
        paligemma.embed_images(params, change(inputs.image), model=model, compute=compute)


def assert_same_where_valid(found, expected, inputs):
    valid = inputs.mask_input == 1
    np.testing.assert_allclose(found[valid], expected[valid], rtol=0, atol=2e-5)

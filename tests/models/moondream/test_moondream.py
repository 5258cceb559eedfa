"""The model against the authors' own code: numbers made by tests/reference/make_moondream.py."""

import dataclasses

import jax
import numpy as np
import pytest

from paligemma_jax.models import family
from paligemma_jax.models.moondream import as_family, moondream, variants
from paligemma_jax.params import lora as lora_lib
from paligemma_jax.params import names
from tests.models.moondream import training_steps

COMPUTE = family.Compute(remat="none")
EVERY_KERNEL = ".*kernel"


def functions(model: as_family.Model, **compute) -> family.Functions:
    return model.functions(family.Compute(**{"remat": "none", **compute}), cache_dtype="float32")


def run_logits(model, params, batch, **compute) -> np.ndarray:
    run = functions(model, **compute)

    @jax.jit
    def logits(params, batch):
        return run.logits(params, run.apply(params, batch))

    return np.asarray(logits(params, batch))


def valid_logits(model, params, batch, **compute) -> np.ndarray:
    return run_logits(model, params, batch, **compute)[batch["mask_input"]]


@pytest.fixture(scope="module")
def ours(md, md_params, batch) -> np.ndarray:
    return run_logits(md, md_params, batch)


def test_image_tokens_and_logits_equal_the_authors(md, md_params, batch, expected, ours):
    tokens = jax.jit(functions(md).embed)(md_params, batch["image"])[:, 0]
    np.testing.assert_allclose(tokens, expected["image_tokens"], rtol=0, atol=2e-5)
    seen = batch["mask_input"][:, 1:]
    np.testing.assert_allclose(ours[:, 1:][seen], expected["logits"][seen], rtol=0, atol=1e-4)


def test_greedy_tokens_equal_the_authors(md, md_params, batch, expected):
    count = expected["greedy"].shape[1]
    made = training_steps.greedy(md, md_params, batch, count=count)
    np.testing.assert_array_equal(made, expected["greedy"])


def test_decoding_of_unstacked_blocks_alone_equals_that_of_stacked_ones(md, md_params, batch):
    run = functions(md)
    read = jax.jit(run.prefill, static_argnames="max_new_tokens")
    step = jax.jit(run.decode_step)
    others = {k: v for k, v in md_params.items() if not k.startswith(moondream.LAYERS)}
    unstacked = {**others, **run.unstack(md_params)}
    one, other = (read(p, batch, max_new_tokens=2) for p in (md_params, unstacked))
    np.testing.assert_allclose(one[0], other[0], rtol=0, atol=1e-5)
    token = np.arange(4, dtype=np.int32)
    one, other = (
        step(p, cache, token)[0]
        for p, (_, cache) in zip((md_params, unstacked), (one, other), strict=True)
    )
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def ten_steps(md, md_params, batch, expected) -> training_steps.Trained:
    count = len(expected["losses"])
    return training_steps.run(md, md_params, batch, count=count, eps=1e-8)


def test_losses_and_gradients_of_ten_steps_equal_the_authors(expected, ten_steps):
    np.testing.assert_allclose(ten_steps.losses, expected["losses"], rtol=0, atol=1e-5)
    norms = [[step[name] for name in expected["names"]] for step in ten_steps.norms]
    np.testing.assert_allclose(norms, expected["norms"], rtol=0, atol=1e-5)
    whole = [name for name in expected if name.startswith("gradient/")]
    assert len(whole) == 4
    for name in whole:
        first = ten_steps.first[name.removeprefix("gradient/")]
        np.testing.assert_allclose(first, expected[name], rtol=0, atol=1e-5)


def test_logits_after_ten_steps_equal_the_authors(md, batch, expected, ten_steps):
    seen = batch["mask_input"][:, 1:]
    trained = run_logits(md, ten_steps.params, batch)[:, 1:][seen]
    np.testing.assert_allclose(trained, expected["trained"][seen], rtol=0, atol=1e-4)


def test_an_unused_image_slot_changes_nothing(md, md_params, batch, ours):
    noise = np.random.default_rng(1).integers(0, 256, batch["image"].shape, np.uint8)
    for order in (0, 1):
        slots = [batch["image"], noise][:: -1 if order else 1]
        used = np.array([[slot is not noise for slot in slots]] * 4)
        two = {**batch, "image": np.concatenate(slots, axis=1), "mask_image": used}
        found = run_logits(md, md_params, two)
        seen = batch["mask_input"]
        np.testing.assert_allclose(found[seen], ours[seen], rtol=0, atol=1e-5)


def test_padding_and_mask_ar_change_nothing(md, md_params, batch, ours):
    other = np.where(batch["mask_input"], batch["text"], 7).astype(np.int32)
    changed = {**batch, "text": other, "mask_ar": np.zeros_like(batch["mask_ar"])}
    seen = batch["mask_input"]
    np.testing.assert_allclose(
        run_logits(md, md_params, changed)[seen], ours[seen], rtol=0, atol=1e-6
    )


def test_a_token_is_hidden_from_those_before_it(md, md_params, batch, ours):
    text = batch["text"].copy()
    text[:, 6] = 11
    found = run_logits(md, md_params, {**batch, "text": text})
    np.testing.assert_allclose(found[:, :6], ours[:, :6], rtol=0, atol=1e-6)
    assert np.abs(found[:, 6] - ours[:, 6]).max() > 0.1


def test_embedded_images_give_what_images_give(md, md_params, batch, ours):
    tokens = jax.jit(functions(md).embed)(md_params, batch["image"])
    embedded = {k: v for k, v in batch.items() if k != "image"}
    found = valid_logits(md, md_params, {**embedded, family.IMAGE_TOKENS: tokens})
    np.testing.assert_allclose(found, ours[batch["mask_input"]], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"expected \(4, 1, 16, 64\)"):
        functions(md).apply(md_params, {**embedded, family.IMAGE_TOKENS: tokens[:, :, :3]})


@pytest.mark.parametrize(("dtype", "atol"), [("bfloat16", 0.6), ("float16", 0.1)])
def test_16_bits_stay_close(md, md_params, batch, ours, dtype, atol):
    found = valid_logits(md, md_params, batch, dtype=dtype)
    assert 0 < np.abs(found - ours[batch["mask_input"]]).max() < atol


def test_factors_act_as_added_weights(md, md_params, batch):
    lora = lora_lib.Lora(EVERY_KERNEL, 2, 4.0)
    adapted = as_family.Model(dataclasses.replace(md.dims, lora=lora))
    rng = np.random.default_rng(3)
    factors = {
        name: rng.normal(size=x.shape, scale=0.1).astype(np.float32)
        for name, x in adapted.shapes().items()
        if names.is_factor(name)
    }
    assert factors["text/layers/attn/qkv/kernel_lora_a"].shape == (3, 64, 2)
    assert factors["text/layers/attn/qkv/kernel_lora_b"].shape == (3, 2, 3, 4, 16)
    merged = dict(md_params)
    for base, (a, b) in lora_lib.pairs(factors).items():
        a, b = factors[a], factors[b]
        stack = 1 if base.startswith((moondream.LAYERS, moondream.BLOCKS)) else 0
        flat_a = a.reshape(*a.shape[:stack], -1, 2)
        flat_b = b.reshape(*b.shape[:stack], 2, -1)
        merged[base] = md_params[base] + lora.scale * (flat_a @ flat_b).reshape(
            md_params[base].shape
        )
    found = valid_logits(adapted, {**md_params, **factors}, batch)
    np.testing.assert_allclose(found, valid_logits(md, merged, batch), rtol=0, atol=1e-3)


def test_init_makes_finite_results_and_another_seed_other_ones(md, batch):
    init = jax.jit(md.init)
    made = init(jax.random.key(0)), init(jax.random.key(1))
    first, second = (valid_logits(md, params, batch) for params in made)
    assert np.isfinite(first).all()
    assert np.abs(first - second).max() > 1e-3
    assert set(made[0]) == set(md.shapes())


def test_dropout_acts_where_an_rng_is_given(md, md_params, batch, ours):
    run = functions(md, dropout=0.5)
    logits = jax.jit(lambda p, batch, rng: run.logits(p, run.apply(p, batch, rng)))
    dropped = logits(md_params, batch, jax.random.key(0))
    assert np.abs(dropped - ours).max() > 0.1
    np.testing.assert_allclose(logits(md_params, batch, None), ours, rtol=0, atol=1e-4)


def test_the_released_size_has_1_86_billion_parameters():
    released = variants.Moondream(variants.VITS["So400m/14"], variants.PHIS["phi_1_5"], 378)
    assert sum(x.size for x in moondream.shapes(released).values()) == 1_857_482_608

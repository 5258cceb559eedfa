"""Greedy decoding, sampling and best-of-n on a model of a dozen numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from paligemma_jax.decoding import constraint, generate

EOS = 1
PROMPTS = [0, 1, 2, 3, 4, 5, 6, 7]


@functools.partial(jax.jit, static_argnames=("model", "settings"))
def run(model, params, batch, rng, allowed, settings):
    return generate.generate(*model, params, batch, rng=rng, constraint=allowed, **dict(settings))


def decode(mock, batch, *, rng=None, allowed=None, **settings):
    settings = tuple(sorted({"max_new_tokens": 4, "eos": EOS, **settings}.items()))
    return jax.device_get(run(mock.model, mock.params, batch, rng, allowed, settings))


def test_greedy_takes_the_likeliest_token_of_every_step(mock):
    out = decode(mock, mock.batch(PROMPTS))
    for prompt, tokens, logp, length in zip(PROMPTS, out.tokens, out.logp, out.length, strict=True):
        expected = mock.follow(prompt, tokens[:length])
        np.testing.assert_array_equal(tokens[:length], expected.argmax(-1))
        np.testing.assert_allclose(logp[:length], expected.max(-1), atol=1e-6)


def test_an_answer_ends_with_eos_or_fills_the_room_and_the_rest_is_padding(mock):
    out = decode(mock, mock.batch(PROMPTS))
    for tokens, logp, length in zip(out.tokens, out.logp, out.length, strict=True):
        assert tokens[length - 1] == EOS or length == 4
        assert EOS not in tokens[: length - 1]
        assert (tokens[length:] == generate.PAD).all() and (logp[length:] == 0).all()
    assert min(out.length) < 4 and out.tokens[7, 3] != EOS, "the mock should show both endings"


def test_decoding_stops_when_every_real_row_holds_eos(mock):
    lengths = decode(mock, mock.batch(PROMPTS)).length
    short, long = int(np.argmin(lengths)), int(np.argmax(lengths))
    prompts = [PROMPTS[short]] + [PROMPTS[long]] * 7
    out = decode(mock, mock.batch(prompts, _mask=np.arange(8) == 0))
    assert (out.length == lengths[short]).all() and lengths[short] < lengths[long]
    np.testing.assert_array_equal(out.is_real, np.arange(8) == 0)


def test_a_forbidden_id_is_never_chosen_and_does_not_change_log_probabilities(mock):
    forbidden = (0, 3)
    allowed = constraint.forbid(forbidden, vocab_size=mock.params.shape[-1])
    settings = dict(sampler="nucleus", top_p=0.99, rng=jax.random.key(0))
    out = decode(mock, mock.batch(PROMPTS), allowed=allowed, **settings)
    for prompt, tokens, logp, length in zip(PROMPTS, out.tokens, out.logp, out.length, strict=True):
        assert not set(tokens[:length]) & set(forbidden)
        expected = mock.follow(prompt, tokens[:length])
        np.testing.assert_allclose(
            logp[:length], expected[range(length), tokens[:length]], atol=1e-6
        )


@pytest.mark.parametrize(
    ("sampler", "settings", "kept"),
    [
        ("temperature", dict(temperature=1.0, top_p=1.0), [0, 1, 2, 3, 4, 5]),
        ("temperature", dict(temperature=0.5, top_p=1.0), [0, 1, 2, 3, 4, 5]),
        ("nucleus", dict(temperature=1.0, top_p=1.0), [0, 1, 2, 3, 4, 5]),
        ("nucleus", dict(temperature=1.0, top_p=0.85), [0, 2, 4]),
        ("nucleus", dict(temperature=1.0, top_p=0.8), [0, 2]),
        ("nucleus", dict(temperature=1.0, top_p=0.01), [2]),
        ("nucleus", dict(temperature=0.5, top_p=0.85), [0, 2]),
    ],
)
def test_samples_are_distributed_as_the_sampler_says(sampler, settings, kept):
    probs = np.array([0.3, 0.04, 0.5, 0.05, 0.1, 0.01])
    logits = jnp.tile(jnp.log(probs.astype(np.float32)), (4000, 1))
    rngs = jax.random.split(jax.random.key(3), 4000)
    tokens = generate.SAMPLERS[sampler](logits, rngs, **settings)
    expected = np.zeros(6)
    expected[kept] = probs[kept] ** (1 / settings["temperature"])
    expected /= expected.sum()
    counts = np.bincount(tokens, minlength=6)
    assert (counts[expected == 0] == 0).all()
    if len(kept) > 1:
        test = scipy.stats.chisquare(counts[kept], 4000 * expected[kept])
        assert test.pvalue > 0.01, (counts, 4000 * expected)


def test_a_nucleus_of_equals_is_not_larger_than_it_must_be():
    logits, rngs = jnp.zeros((4000, 6)), jax.random.split(jax.random.key(0), 4000)
    tokens = generate.sample_nucleus(logits, rngs, temperature=1.0, top_p=0.5)
    assert set(np.asarray(tokens).tolist()) == {0, 1, 2}


def test_a_row_draws_the_same_in_any_batch(mock):
    settings = dict(sampler="temperature", rng=jax.random.key(0), best_of=3)
    out = decode(mock, mock.batch(PROMPTS), **settings)
    index = np.array([6, 2, 4, 50, 51, 52, 53, 54])
    again = decode(mock, mock.batch([6, 2, 4, 9, 9, 9, 9, 9], index=index), **settings)
    np.testing.assert_array_equal(again.tokens[:3], out.tokens[[6, 2, 4]])
    np.testing.assert_array_equal(again.index, index)


def test_another_key_and_another_row_draw_differently(mock):
    batch = mock.batch([5] * 8)
    one, two = (decode(mock, batch, sampler="temperature", rng=jax.random.key(i)) for i in (0, 1))
    assert not np.array_equal(one.tokens, two.tokens)
    assert len(np.unique(one.tokens, axis=0)) > 1


def test_best_of_n_keeps_the_candidate_with_the_highest_score(mock):
    settings = dict(sampler="temperature", rng=jax.random.key(0))
    one = decode(mock, mock.batch(PROMPTS), **settings).logp.sum(-1)
    best = decode(mock, mock.batch(PROMPTS), best_of=3, **settings).logp.sum(-1)
    assert (best >= one).all() and (best > one).any(), "the first of three is the one of one"


def test_best_of_n_candidates_keep_their_own_cache(mock):
    out = decode(mock, mock.batch(PROMPTS), best_of=3, sampler="temperature", rng=jax.random.key(0))
    for prompt, tokens, logp, length in zip(PROMPTS, out.tokens, out.logp, out.length, strict=True):
        expected = mock.follow(prompt, tokens[:length])[range(length), tokens[:length]]
        np.testing.assert_allclose(logp[:length], expected, atol=1e-6)


def test_one_program_serves_every_batch_and_never_calls_the_host(mock):
    step = jax.jit(
        lambda params, batch: generate.generate(
            *mock.model, params, batch, max_new_tokens=6, eos=EOS
        )
    )
    for prompts in ([0, 1], [2, 3], [4, 5]):
        step(mock.params, mock.batch(prompts))
    assert step._cache_size() == 1
    program = step.lower(mock.params, mock.batch([0, 1])).as_text()
    assert "stablehlo.while" in program and "callback" not in program


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(sampler="nucles"), "none of"),
        (dict(temperature=0.5), "no effect on sampler 'greedy'"),
        (dict(sampler="temperature", top_p=0.5), "'nucleus' only"),
        (dict(sampler="temperature", temperature=0.0), "temperature > 0"),
        (dict(sampler="nucleus", top_p=1.5), "top_p <= 1"),
        (dict(sampler="nucleus", top_p=0.9), "pass rng="),
        (dict(best_of=0), "at least 1"),
        (dict(max_new_tokens=0), "at least 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(mock, settings, message):
    with pytest.raises(ValueError, match=message):
        decode(mock, mock.batch(PROMPTS), **settings)


def test_a_batch_that_does_not_say_which_rows_it_holds_is_refused(mock):
    with pytest.raises(ValueError, match=r"keys \['_mask', 'index'\] missing; found \['prompt'\]"):
        decode(mock, {"prompt": np.array([0])})

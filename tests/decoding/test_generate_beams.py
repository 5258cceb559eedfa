"""Beam search on a model of a dozen numbers."""

import functools
import itertools

import jax
import numpy as np
import pytest

from paligemma_jax.decoding import constraint, generate

EOS = 1
PROMPTS = [0, 1, 2, 3, 4, 5, 6, 7]


@functools.partial(jax.jit, static_argnames=("model", "settings"))
def run(model, params, batch, allowed, settings):
    return generate.beam_search(*model, params, batch, constraint=allowed, **dict(settings))


def decode(mock, batch, *, allowed=None, **settings):
    settings = tuple(sorted({"max_new_tokens": 4, "eos": EOS, **settings}.items()))
    return jax.device_get(run(mock.model, mock.params, batch, allowed, settings))


def best_answer(mock, prompt, forbidden=()):
    """Tries every answer of up to 4 tokens that ends in eos."""
    words = [
        token for token in range(mock.params.shape[-1]) if token != EOS and token not in forbidden
    ]
    answers = [(*words_, EOS) for n in range(4) for words_ in itertools.product(words, repeat=n)]
    scores = [mock.follow(prompt, a)[range(len(a)), a].sum() for a in answers]
    return list(answers[int(np.argmax(scores))]), max(scores)


@pytest.mark.parametrize("forbidden", [(), (0, 3)])
def test_a_wide_beam_finds_the_best_answer_there_is(mock, forbidden):
    width = mock.params.shape[-1] - 1 - len(forbidden)
    allowed = constraint.forbid(forbidden, vocab_size=mock.params.shape[-1])
    out = decode(mock, mock.batch(PROMPTS), beam_size=width, allowed=allowed)
    for row, prompt in enumerate(PROMPTS):
        answer, score = best_answer(mock, prompt, forbidden)
        assert out.tokens[row, : out.length[row]].tolist() == answer
        np.testing.assert_allclose(out.logp[row].sum(), score, atol=1e-5)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_every_token_has_its_own_log_probability_and_the_rest_is_padding(mock, beam_size):
    out = decode(mock, mock.batch(PROMPTS), beam_size=beam_size)
    for prompt, tokens, logp, length in zip(PROMPTS, out.tokens, out.logp, out.length, strict=True):
        expected = mock.follow(prompt, tokens[:length])[range(length), tokens[:length]]
        np.testing.assert_allclose(logp[:length], expected, atol=1e-6)
        assert tokens[length - 1] == EOS
        assert (tokens[length:] == generate.PAD).all() and (logp[length:] == 0).all()


def test_a_row_is_decoded_the_same_in_any_batch(mock):
    out = decode(mock, mock.batch(PROMPTS), beam_size=3)
    index = np.array([6, 2, 4, 50, 51, 52, 53, 54])
    again = decode(mock, mock.batch([6, 2, 4, 9, 9, 9, 9, 9], index=index), beam_size=3)
    np.testing.assert_array_equal(again.tokens[:3], out.tokens[[6, 2, 4]])
    np.testing.assert_array_equal(again.index, index)


def test_rows_that_only_fill_the_batch_do_not_keep_the_search_going(mock):
    alone = decode(mock, mock.batch([0, 0]), beam_size=3, max_new_tokens=50)
    for filler in PROMPTS:
        batch = mock.batch([0, filler], _mask=np.array([True, False]))
        out = decode(mock, batch, beam_size=3, max_new_tokens=50)
        np.testing.assert_array_equal(out.tokens[0], alone.tokens[0])
        assert out.length[1] <= 50


def test_where_eos_may_never_come_there_is_no_answer(mock):
    allowed = constraint.forbid([EOS], vocab_size=mock.params.shape[-1])
    out = decode(mock, mock.batch(PROMPTS), beam_size=2, allowed=allowed)
    assert not out.length.any() and not out.tokens.any() and not out.logp.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(beam_size=0), "at least 1"),
        (dict(beam_size=6), "only 5 tokens can be chosen"),
    ],
)
def test_settings_that_leave_no_beam_are_refused(mock, settings, message):
    with pytest.raises(ValueError, match=message):
        decode(mock, mock.batch(PROMPTS), **settings)

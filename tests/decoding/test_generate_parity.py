"""Decoding with a tiny PaliGemma, against numbers made by big_vision.

big_vision caps the logits of later tokens (`final_logits_softcap`) but not those of the first;
ours caps all alike. A cap is monotonic, so greedy tokens stay; log-probabilities change, and beams
with them. `UNCAPPED_FIRST` does it big_vision's way, which shows that nothing else differs.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma_jax.decoding import constraint, generate
from paligemma_jax.models.common import attention
from paligemma_jax.models.paligemma import paligemma, variants

N, T, VOCAB = 16, 10, 1400
COMPUTE = paligemma.Compute()
# case -> (language model, final soft-cap, tolerance of log-probabilities)
CASES = {
    "pg1": ("tiny", 0.0, 1e-4),
    "pg2_cap0": ("tiny2", 0.0, 5e-4),
    "pg2_cap30": ("tiny2", 30.0, 5e-4),
}
UNCAPPED_FIRST = 0.0


def make_model(case, *, cap=None):
    llm, own_cap, _ = CASES[case]
    cap = own_cap if cap is None else cap
    return variants.make("tiny/14", llm, res=56, vocab_size=VOCAB, final_logits_softcap=cap)


def split_inputs(batch):
    return [batch[key] for key in ("image", "mask_image", "text", "mask_ar", "mask_input")]


@functools.partial(jax.jit, static_argnames="model")
def run_prefill(params, batch, *, model):
    slots = model.num_image_tokens + T + N
    kwargs = dict(compute=COMPUTE, cache_len=slots, cache_dtype="float32")
    return paligemma.prefill(params, *split_inputs(batch), model=model, **kwargs)


@functools.partial(jax.jit, static_argnames=("search", "model", "settings"))
def run(params, batch, eos, allowed, *, search, model, settings):
    """Decodes from what was read already, so that the cases share a compiled prefill."""
    functions = (
        lambda _, batch: batch["read"],
        functools.partial(paligemma.decode_step, model=model, compute=COMPUTE),
        attention.select_rows,
    )
    common = dict(max_new_tokens=N, eos=eos, constraint=allowed)
    return search(*functions, params, batch, **common, **dict(settings))


@pytest.fixture(scope="module")
def load_inputs(load_reference):
    @functools.cache
    def load_inputs(case):
        params, _, _ = load_reference(f"forward_{case.split('_')[0]}")
        _, inputs, _ = load_reference(f"decode_{case}")
        batch = {key: inputs[key] for key in ("text", "mask_ar", "mask_input", "_mask")}
        images = dict(image=inputs["image_u8"][:, None], mask_image=np.ones((6, 1), bool))
        return params, batch | images | dict(index=np.arange(6))

    return load_inputs


@pytest.fixture(scope="module")
def decode(load_inputs):
    @functools.cache
    def read(case, cap):
        return run_prefill(*load_inputs(case), model=make_model(case, cap=cap))

    def decode(
        case,
        eos,
        *,
        allowed=None,
        first_cap=None,
        search=generate.generate,
        changes=None,
        **settings,
    ):
        params, batch = load_inputs(case)
        batch = batch | {"read": read(case, first_cap)} | (changes or {})
        settings = dict(search=search, settings=tuple(settings.items()))
        return jax.device_get(run(params, batch, eos, allowed, model=make_model(case), **settings))

    return decode


def is_answer(tokens, eos):
    """bool[B, N]: up to each row's first eos. Behind it big_vision writes on, and ours pads."""
    return np.cumsum(tokens == eos, axis=1) - (tokens == eos) == 0


def assert_same(found, out, key, *, eos, tolerance, first=0, rows=slice(None)):
    """Compares rows up to their eos, log-probabilities from position `first` on."""
    tokens, answer = out[f"{key}/tokens"], is_answer(out[f"{key}/tokens"], eos)
    np.testing.assert_array_equal(found.tokens[rows], np.where(answer, tokens, 0)[rows])
    expected = np.where(answer, out[f"{key}/logp"], 0)[rows, first:]
    np.testing.assert_allclose(found.logp[rows, first:], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_greedy_answers_equal_big_vision(load_reference, decode, case):
    _, _, out = load_reference(f"decode_{case}")
    assert out["greedy/margins"].min() > 1e-3, "every token of the reference can be compared"
    tolerance = CASES[case][2]
    first = 1 if case == "pg2_cap30" else 0
    for number, eos in enumerate(out["eos_tokens"]):
        found = decode(case, eos)
        key = f"greedy/eos{number}"
        assert_same(found, out, key, eos=eos, tolerance=tolerance, first=first)
        assert (found.length == is_answer(out[f"{key}/tokens"], eos).sum(1))[found.is_real].all()
        if first:
            assert np.abs(found.logp - out[f"{key}/logp"])[:, 0].max() > 0.01


def test_decoding_stops_where_big_vision_does(load_reference, decode):
    _, _, out = load_reference("decode_pg1")
    eos, only_first = out["eos_tokens"][1], np.arange(6) == 0
    found = decode("pg1", eos, changes={"_mask": only_first})
    assert_same(found, out, "greedy/earlystop", eos=eos, tolerance=1e-4)
    assert found.length.max() < N


def test_forbidden_ids_act_as_in_big_vision(load_reference, decode):
    _, _, out = load_reference("decode_pg1")
    allowed = constraint.forbid(out["greedy/mask_logits/forbidden"], vocab_size=VOCAB)
    eos = out["eos_tokens"][0]
    found = decode("pg1", eos, allowed=allowed)
    assert_same(found, out, "greedy/mask_logits", eos=eos, tolerance=1e-4)


def test_best_of_three_equals_big_vision(load_reference, decode):
    _, _, out = load_reference("decode_pg2_cap30")
    eos = out["eos_tokens"][2]
    found = decode("pg2_cap30", eos, first_cap=UNCAPPED_FIRST, best_of=3)
    assert_same(found, out, "bon3", eos=eos, tolerance=5e-4)


@pytest.mark.parametrize("beam_size", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("case", ["pg2_cap0", "pg2_cap30"])
def test_beams_equal_big_vision(load_reference, decode, case, beam_size):
    """Of real rows: big_vision compares every row's live score with every row's best one.

    So it searches on for longer than it must, which changes nothing but rows that fill the batch.
    """
    _, inputs, out = load_reference(f"decode_{case}")
    settings = dict(search=generate.beam_search, beam_size=beam_size, first_cap=UNCAPPED_FIRST)
    for number, eos in enumerate(out["eos_tokens"]):
        found = decode(case, eos, **settings)
        key = f"beam{beam_size}/eos{number}"
        assert_same(found, out, key, eos=eos, tolerance=5e-4, rows=inputs["_mask"])


@functools.partial(jax.jit, static_argnames="model")
def read_answers(params, batch, tokens, *, model):
    """Teacher forcing: float32[B, N, V] log-probabilities of what each token of an answer may be.

    Prompt and answer stand side by side here, without the padding that a cache has between them.
    """
    prompt_len = batch["mask_input"].sum(axis=1, keepdims=True)
    place, at = np.arange(T + N), prompt_len + np.arange(N)
    text = jnp.pad(batch["text"], ((0, 0), (0, N)))
    text = text.at[np.arange(len(tokens))[:, None], at].set(tokens)
    masks = dict(mask_ar=place >= prompt_len, mask_input=place < prompt_len + N)
    inputs = split_inputs(batch | masks | dict(text=text))
    hidden = paligemma.apply(params, *inputs, model=model, compute=COMPUTE)
    hidden = jnp.take_along_axis(hidden, at[..., None] - 1, axis=1)
    return jax.nn.log_softmax(paligemma.logits(params, hidden, model=model))


@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_decoding_equals_teacher_forcing(load_reference, load_inputs, decode, search):
    """With the soft-cap of 30: it acts alike in a forward pass, in first and in later tokens."""
    case, settings = (
        "pg2_cap30",
        dict(search=generate.beam_search, beam_size=3) if search == "beam" else {},
    )
    _, _, out = load_reference(f"decode_{case}")
    for eos in out["eos_tokens"]:
        found = decode(case, eos, **settings)
        logp = np.asarray(read_answers(*load_inputs(case), found.tokens, model=make_model(case)))
        answer = np.arange(N) < found.length[:, None]
        expected = np.take_along_axis(logp, found.tokens[..., None], axis=-1)[..., 0]
        np.testing.assert_allclose(found.logp[answer], expected[answer], rtol=0, atol=5e-4)
        if search == "greedy":
            np.testing.assert_array_equal(found.tokens[answer], logp.argmax(-1)[answer])

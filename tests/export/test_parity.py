"""What --verify compares, and how much it allows. Transformers itself: tests/test_convert.py."""

import dataclasses

import numpy as np
import pytest

from paligemma_jax.checkpoints import npz, partial_weights
from paligemma_jax.export import parity, writers
from paligemma_jax.models.paligemma import variants

LARGEST = 8.0


@pytest.fixture(scope="module")
def model():
    return variants.make("tiny/14", "tiny", res=56, vocab_size=1400, final_logits_softcap=0.0)


@pytest.fixture(scope="module")
def converted(model, load_reference, tmp_path_factory):
    """Stored type -> (npz weights, folder for transformers) of a tiny PaliGemma 1."""

    def make(dtype):
        folder = tmp_path_factory.mktemp(dtype)
        params = load_reference("forward_pg1")[0]
        npz.write(folder / "a.npz", {name: x.astype(dtype) for name, x in params.items()})
        stored = partial_weights.find(folder / "a.npz")
        writers.to_huggingface(stored, folder / "hf", model, dtype=None, tokenizer=None)
        return stored, folder / "hf"

    return {dtype: make(dtype) for dtype in ("float32", "float16")}


@pytest.fixture
def compare(monkeypatch, converted, model):
    """Returns what `parity.compare` says of logits that are `error` apart at [row, position]."""

    def compare(error, *, at, dtype="float32"):
        ours = np.random.default_rng(0).uniform(-1, 1, (2, 8, 1400))
        ours[0, 0, 0] = LARGEST
        theirs = ours.copy()
        theirs[(*at, 7)] += error
        monkeypatch.setattr(parity, "_our_logits", lambda *_, **__: ours)
        monkeypatch.setattr(parity, "_their_logits", lambda *_, **__: theirs)
        return parity.compare(*converted[dtype], model)

    return compare


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-3), ("float16", 1e-2)])
def test_logits_may_differ_by_what_the_stored_type_rounds(compare, dtype, bound):
    assert compare(0.99 * bound * LARGEST, at=(0, 1), dtype=dtype).max_ratio == bound
    with pytest.raises(ValueError, match=rf"of the largest, 8; .* may make {bound:g}\. Do not use"):
        compare(1.01 * bound * LARGEST, at=(0, 1), dtype=dtype)


def test_a_refusal_says_the_figure_and_what_to_do(compare):
    message = r"logits by up to 0\.04, which is 0\.005 of the largest.*written: please report this"
    with pytest.raises(ValueError, match=message):
        compare(0.04, at=(0, 1))
    with pytest.raises(ValueError, match="convert with --dtype float32, and where that differs"):
        compare(0.4, at=(0, 1), dtype="float16")


def test_a_logit_that_is_not_a_number_is_refused(compare):
    with pytest.raises(ValueError, match="logits by up to nan"):
        compare(np.nan, at=(0, 1))


@pytest.mark.parametrize("at", [(0, 0), (0, 4), (0, 7), (1, 2), (1, 3), (1, 4)])
def test_every_position_counts_those_of_the_suffix_too(compare, at):
    with pytest.raises(ValueError, match=r"logits by up to 0\.1,"):
        compare(0.1, at=at)


@pytest.mark.parametrize("at", [(1, 5), (1, 7)])
def test_padding_does_not_count(compare, at):
    assert compare(0.1, at=at).largest == 0


@pytest.mark.slow
def test_a_reader_that_sees_the_suffix_before_it_is_written_is_refused(
    monkeypatch, converted, model
):
    stored, folder = converted["float32"]

    def all_as_prefix(_, batch, *, model):
        seen = dataclasses.replace(batch, is_suffix=np.zeros_like(batch.is_suffix))
        return parity._our_logits(stored, seen, model=model)

    monkeypatch.setattr(parity, "_their_logits", all_as_prefix)
    with pytest.raises(ValueError, match="Do not use what was written"):
        parity.compare(stored, folder, model)

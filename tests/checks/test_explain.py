"""An example is explained by the row that training makes of it."""

import pathlib

import pytest

from paligemma_jax.checks import explain
from paligemma_jax.data import prefix_lm, records, tokens

REFERENCE = pathlib.Path(__file__).parents[1] / "reference"


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.load_tokenizer(REFERENCE / "tiny_spm.model")


def explain_row(tokenizer, record, text_len):
    return explain.explain(
        record, tokenizer, text_len=text_len, lowercase=False, num_image_tokens=4
    )


def test_a_worked_example(tokenizer):
    record = records.Record(("a.png",), "a", "b", source="x:1")
    found = explain_row(tokenizer, record, text_len=6)
    (a,), (b,) = tokenizer.encode("a"), tokenizer.encode("b")
    table = [
        (
            t.part,
            t.token_id,
            int(t.mask_ar),
            int(t.mask_loss),
            int(t.mask_input),
            t.position,
            t.count,
        )
        for t in found
    ]
    assert table == [
        ("image", None, 0, 0, 1, 0, 4),
        ("prefix", tokenizer.bos, 0, 0, 1, 4, 1),
        ("prefix", a, 0, 0, 1, 5, 1),
        ("prefix", tokenizer.newline, 0, 0, 1, 6, 1),
        ("suffix", b, 1, 1, 1, 7, 1),
        ("suffix", tokenizer.eos, 1, 1, 1, 8, 1),
        ("padding", tokenizer.pad, 1, 0, 0, None, 2),
    ]
    assert found[3].piece == "\n"
    assert explain.answer(found, tokenizer) == "b"


def test_tokens_and_masks_are_those_of_the_training_row(tokenizer):
    record = records.Record((), "detect cat", "<loc0010><loc0020><loc1023><loc0512> cat")
    found = explain_row(tokenizer, record, text_len=32)
    row = prefix_lm.encode_training(tokenizer, record.prefix, record.suffix, text_len=32)
    for name in ("mask_ar", "mask_loss", "mask_input"):
        assert [getattr(t, name) for t in found for _ in range(t.count)] == row[name].tolist()
    assert [t.token_id for t in found for _ in range(t.count)] == row["text"].tolist()


def test_two_images_take_two_stretches_of_positions(tokenizer):
    record = records.Record(("a.png", "b.png"), "a", "b")
    found = explain_row(tokenizer, record, text_len=6)
    assert [(t.position, t.count) for t in found[:3]] == [(0, 4), (4, 4), (8, 1)]


def test_a_text_that_does_not_fit_is_shown_as_it_would_be_cut(tokenizer):
    record = records.Record((), "a", "b b b b")
    found = explain_row(tokenizer, record, text_len=4)
    assert tokenizer.eos not in [t.token_id for t in found]
    assert sum(t.count for t in found) == 5

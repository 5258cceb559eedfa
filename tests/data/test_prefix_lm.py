"""Rows and masks equal big_vision's, and text that does not fit is said."""

import json
import pathlib

import numpy as np
import pytest

from paligemma_jax.data import prefix_lm, records, tokens

REFERENCE = pathlib.Path(__file__).parents[1] / "reference"
GOLDEN = json.loads((REFERENCE / "tokenizer.json").read_text())["pp"]


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.load_tokenizer(REFERENCE / "tiny_spm.model")


def name_case(case) -> str:
    return f"{case['kind']}-{case['text_len']}-{case['prefix']}"


@pytest.mark.parametrize("case", GOLDEN, ids=name_case)
def test_rows_equal_big_vision(tokenizer, case):
    encode = dict(
        train=lambda **kwargs: prefix_lm.encode_training(tokenizer, case["prefix"], **kwargs),
        eval=lambda **kwargs: prefix_lm.encode_prompt(tokenizer, case["prefix"], **kwargs),
    )[case["kind"]]
    row = encode(suffix=case["suffix"], text_len=case["text_len"], allow_truncation=True)
    for name, expected in case["out"].items():
        np.testing.assert_array_equal(row[name], expected, err_msg=name)


def test_a_worked_training_row(tokenizer):
    row = prefix_lm.encode_training(tokenizer, "a", "b", text_len=6)
    bos, a, newline, b, eos, pad = 2, *tokenizer.encode("a"), 4, *tokenizer.encode("b"), 1, 0
    assert row["text"].tolist() == [bos, a, newline, b, eos, pad, pad]
    assert row["mask_ar"].astype(int).tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert row["mask_loss"].astype(int).tolist() == [0, 0, 0, 1, 1, 0, 0]
    assert row["mask_input"].astype(int).tolist() == [1, 1, 1, 1, 1, 0, 0]
    assert row["text"].dtype == np.int32
    assert {row[name].dtype for name in row if name != "text"} == {np.dtype(bool)}


def test_an_example_that_would_lose_its_eos_is_an_error(tokenizer):
    prefix, suffix = "detect cat", "<loc0010><loc0020><loc1023><loc0512> cat"  # 5 + 5 + eos
    row = prefix_lm.encode_training(tokenizer, prefix, suffix, text_len=10)
    assert row["text"][-1] == tokenizer.eos
    with pytest.raises(ValueError, match=r"found 9: eos would be cut off; set input.text_len=16,"):
        prefix_lm.encode_training(tokenizer, prefix, suffix, text_len=9)
    row = prefix_lm.encode_training(tokenizer, prefix, suffix, text_len=9, allow_truncation=True)
    assert tokenizer.eos not in row["text"]


def test_a_prompt_that_does_not_fit_is_an_error(tokenizer):
    row = prefix_lm.encode_prompt(tokenizer, "detect cat", text_len=5)
    assert row["text"][-1] == tokenizer.newline
    with pytest.raises(ValueError, match=r"needs text_len 5, found 4; set input.text_len=8,"):
        prefix_lm.encode_prompt(tokenizer, "detect cat", text_len=4)


@pytest.mark.parametrize(
    ("prefix", "suffix", "removed"),
    [
        ("caption en", "a cat", []),
        ("<bos>caption en\n", "a cat<eos>", ["<bos>", "newline", "<eos>"]),
        ("<image><image><bos>caption en", "a cat", ["<bos>"]),
        ("<image> caption en\r\n\n", "a cat", ["<bos>", "newline"]),
        ("caption en", "a cat<eos>\n<eos>", ["<eos>"]),
    ],
)
def test_a_users_own_bos_newline_and_eos_are_removed(tokenizer, prefix, suffix, removed):
    *texts, found = prefix_lm.clean(prefix, suffix)
    assert texts == ["caption en", "a cat"]
    assert [what.split()[0] for what in found] == removed
    expected = prefix_lm.encode_training(tokenizer, "caption en", "a cat", text_len=16)
    row = prefix_lm.encode_training(tokenizer, prefix, suffix, text_len=16)
    assert all(np.array_equal(row[name], expected[name]) for name in expected)


def test_newlines_inside_a_prefix_stay():
    assert prefix_lm.clean("a\nb", "c\nd\n") == ("a\nb", "c\nd\n", [])


def test_lowercase_lowers_prefix_and_suffix(tokenizer):
    row = prefix_lm.encode_training(tokenizer, "Detect CAT", "A Cat", text_len=16, lowercase=True)
    lower = prefix_lm.encode_training(tokenizer, "detect cat", "a cat", text_len=16)
    np.testing.assert_array_equal(row["text"], lower["text"])
    prompt = prefix_lm.encode_prompt(tokenizer, "Detect CAT", text_len=8, lowercase=True)
    np.testing.assert_array_equal(prompt["text"][:5], lower["text"][:5])


def record(prefix, suffix, line) -> records.Record:
    return records.Record((), prefix, suffix, source=f"x.jsonl:{line}")


def test_the_length_report_says_who_does_not_fit_and_what_would(tokenizer):
    data = [record("a", "b", i) for i in range(1, 98)]  # need 4: bos a \n b (eos is not read)
    data += [
        record("a", "b b b b<eos>", 98),  # 7
        record("a a a a a a a\n", "b", 99),  # 10
        record("a a", None, 100),  # 4, a prompt
    ]
    calls = []
    report = prefix_lm.length_report(
        data, tokenizer, text_len=6, progress=lambda *n: calls.append(n)
    )
    assert (report.num_records, report.p50, report.p95, report.p99) == (100, 4, 4, 10)
    assert (report.longest, report.suggested_text_len) == (10, 16)
    assert [prefix_lm.round_up(needed) for needed in (32, 33, 41)] == [32, 40, 48]
    assert report.too_long == (("x.jsonl:98", 7), ("x.jsonl:99", 10))
    assert report.num_without_target == 1
    assert report.counts == {4: 98, 7: 1, 10: 1}
    assert report.removed == {"<eos> after the suffix": 1, "newline after the prefix": 1}
    assert "longest); 2 of 100 records do not fit" in report.describe()
    assert "removed newline after the prefix: in 1 of 100 records" in report.describe()
    with pytest.raises(ValueError, match="2 of 100 records do not fit") as error:
        report.require_fit()
    assert "x.jsonl:99: needs text_len 10" in str(error.value)
    assert f"learn to stop; {prefix_lm.make_room(10)}" in str(error.value)
    assert calls == [(100, 100)]


def test_a_needed_length_is_the_shortest_that_fits(tokenizer):
    for suffix in ("b", "b b b b"):
        report = prefix_lm.length_report([record("a", suffix, 1)], tokenizer, text_len=64)
        prefix_lm.encode_training(tokenizer, "a", suffix, text_len=report.longest)
        with pytest.raises(ValueError, match="eos would be cut off"):
            prefix_lm.encode_training(tokenizer, "a", suffix, text_len=report.longest - 1)


def test_a_report_on_nothing_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="no records"):
        prefix_lm.length_report([], tokenizer, text_len=16)


# Texts of a batch are as short as the longest row of any process allows.


@pytest.mark.parametrize(
    ("num_tokens", "expected"), [(1, 4), (5, 4), (6, 8), (9, 8), (10, 12), (13, 12), (14, 16)]
)
def test_the_smallest_length_that_holds_all_inputs_is_chosen(num_tokens, expected):
    assert prefix_lm.choose_length(num_tokens, text_lens=[8, 4, 12], longest=16) == expected


def batch(*num_tokens: int) -> dict[str, np.ndarray]:
    """Rows of so many tokens 1, 2, 3, ..., padded to 9."""
    used = np.arange(9) < np.array(num_tokens)[:, None]
    return {
        "text": np.where(used, np.arange(1, 10), 0),
        "mask_input": used,
        "mask_ar": ~used,
        "mask_loss": used,
        "image": np.zeros((len(num_tokens), 1)),
    }


def test_texts_are_cut_where_no_row_here_or_elsewhere_has_a_token():
    elsewhere, asked = iter([0, 6, 2]), []

    def largest(here: int) -> int:
        asked.append(here)
        return max(here, next(elsewhere))

    batches = [batch(2, 4), batch(2, 4), batch(9, 1)]
    found = list(prefix_lm.fit_lengths(batches, text_lens=[3, 5], longest=8, largest=largest))
    assert asked == [4, 4, 9]
    assert [one["text"].shape[1] for one in found] == [4, 6, 9]
    for one, whole in zip(found, batches, strict=True):
        for name in prefix_lm.TEXT_ARRAYS:
            np.testing.assert_array_equal(one[name], whole[name][:, : one["text"].shape[1]])
        assert one["image"] is whole["image"]

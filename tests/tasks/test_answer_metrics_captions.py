"""CIDEr, BLEU and ROUGE-L equal pycocoevalcap's on words that are split already."""

import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma_jax.tasks import answer_metrics, metrics, text_metrics

REFERENCE = pathlib.Path(__file__).parents[1] / "reference" / "answer_scores.json"
CAPTIONS = json.loads(REFERENCE.read_text())["captions"]
CHOSEN = metrics.choose(["cider", "bleu4", "rouge_l", "word_f1"])


def rows_of(examples):
    return [
        {
            "prediction": row["prediction"],
            **text_metrics.score_example(row["prediction"], suffix=None, extra=row, metrics=CHOSEN),
        }
        for row in examples
    ]


def test_caption_scores_equal_pycocoevalcap():
    rows = rows_of(CAPTIONS["rows"])
    scores = text_metrics.aggregate(rows, metrics=CHOSEN)
    for name in ("cider", "bleu4", "rouge_l"):
        assert scores[name] == pytest.approx(CAPTIONS[name], rel=1e-6), name
    found = [row["values"]["rouge_l"] for row in rows]
    assert found == pytest.approx(CAPTIONS["rouge_l_each"], abs=1e-6)


def test_scores_of_a_data_set_leave_rows_to_the_next_score():
    (row,) = rows_of(CAPTIONS["rows"][:1])
    assert set(row["values"]) == {"rouge_l", "word_f1"}
    assert row["score"] == row["values"]["rouge_l"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man's dog, and it doesn't bark!", "a man 's dog and it does n't bark"),
        ("They're 2.5 m; 10:30 o'clock (late).", "they 're 2.5 m 10:30 o clock late"),
        ("a double-decker bus", "a double-decker bus"),
        ("", ""),
    ],
)
def test_words_are_split_as_stanfords_tokenizer_does(text, words):
    assert answer_metrics.split_words(text) == words.split()


@pytest.mark.parametrize(
    ("prediction", "truth", "f1"),
    [
        ("a cat on a mat", "A cat on a mat", 1.0),
        ("a cat", "a dog", 0.5),
        ("the the the", "the", 0.5),  # 1 of 3 words, 1 of 1: a word counts as often as it occurs
        ("", "a dog", 0.0),
        ("", "", 1.0),
    ],
)
def test_word_f1_is_the_overlap_of_two_bags_of_words(prediction, truth, f1):
    assert answer_metrics.word_f1(prediction, [truth]) == pytest.approx(f1)


def test_nothing_predicted_scores_nothing():
    rows = rows_of([{"prediction": "", "answers": ["a dog"]}])
    scores = text_metrics.aggregate(rows, metrics=CHOSEN)
    assert scores["bleu4"] == scores["cider"] == scores["rouge_l"] == 0.0


WORDS = st.lists(st.sampled_from(["a", "cat", "on"]), max_size=70)


@given(WORDS, WORDS)
def test_rouge_counts_the_longest_common_subsequence(first, second):
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for j, other in enumerate(second, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j - 1], row[j])
    score = answer_metrics.rouge_l(" ".join(first), [" ".join(second)])
    if not row[-1]:
        assert score == 0
        return
    precision, recall = row[-1] / len(first), row[-1] / len(second)
    expected = 2.44 * precision * recall / (recall + 1.44 * precision)
    assert score == pytest.approx(expected)

import math

import pytest

from paligemma_jax.tasks import caption


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
    assert caption.word_f1(prediction, truth) == pytest.approx(f1)


def test_captions_are_scored_by_overlap_beside_exact_match():
    pairs = [("a cat", "A cat"), ("a cat", "a dog"), ("a bird", None)]
    rows = [{"prediction": p, **caption.judge(p, suffix=truth)} for p, truth in pairs]
    assert [row["score"] for row in rows] == [1.0, 0.5, None]
    scores = caption.score(rows)
    assert scores == {"word_f1": 0.75, "exact_match": 0.5, "num_examples": 2, "empty": 0}
    assert math.isnan(caption.score([])["word_f1"])

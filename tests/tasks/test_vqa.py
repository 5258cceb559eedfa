import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma_jax.tasks import vqa


@given(st.text(max_size=30))
def test_parse_undoes_format_up_to_the_canonical_form(answer):
    assert vqa.parse(vqa.format(answer)) == vqa.parse(answer)
    assert vqa.format(vqa.parse(answer)) == vqa.parse(answer)


@pytest.mark.parametrize(
    ("prediction", "truth", "correct"),
    [
        ("Two dogs", " two  dogs\n", True),
        ("two dog", "two dogs", False),
        ("yes.", "yes", False),
        ("", "yes", False),
    ],
)
def test_answers_match_but_for_case_and_spaces(prediction, truth, correct):
    assert vqa.judge(prediction, suffix=truth) == {"score": float(correct), "correct": correct}


def test_scores_count_matches_and_empty_answers():
    pairs = [("yes", "Yes"), (" ", "no"), ("3", "4"), ("blue", None)]
    rows = [{"prediction": p, **vqa.judge(p, suffix=truth)} for p, truth in pairs]
    assert vqa.score(rows) == {"exact_match": pytest.approx(1 / 3), "num_examples": 3, "empty": 1}
    assert math.isnan(vqa.score([])["exact_match"])


def test_an_empty_training_answer_is_named():
    assert vqa.check(" ") == "the answer is empty"
    assert vqa.check("yes") is None

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma_jax.tasks import metrics, text_metrics

EXACT = metrics.choose(["exact_match"])


def rows_of(pairs, chosen, **extra):
    return [
        {
            "prediction": text,
            **text_metrics.score_example(text, suffix=suffix, extra=extra, metrics=chosen),
        }
        for text, suffix in pairs
    ]


def test_the_first_score_leads_and_all_are_kept():
    chosen = metrics.choose(["anls", "exact_match"])
    row = text_metrics.score_example("cats", suffix="Cat", metrics=chosen)
    assert row["score"] == row["values"]["anls"] == 0.75 and row["correct"] is False
    assert row["values"]["exact_match"] == 0.0 and row["references"] == ["Cat"]


def test_several_true_answers_replace_the_suffix():
    extra = {"answers": ["two", "2"]}
    assert text_metrics.score_example("2", suffix="two", extra=extra, metrics=EXACT)["correct"]
    assert not text_metrics.score_example("3", suffix="3", extra=extra, metrics=EXACT)["correct"]


def test_rows_without_truth_and_empty_answers_are_told_apart():
    rows = rows_of([("yes", "Yes"), (" ", "no"), ("3", "4"), ("blue", None)], EXACT)
    assert rows[3]["score"] is None and rows[3]["correct"] is None
    assert text_metrics.aggregate(rows, metrics=EXACT) == {
        "exact_match": pytest.approx(1 / 3),
        "num_examples": 3,
        "empty": 1,
    }
    assert math.isnan(text_metrics.aggregate([], metrics=EXACT)["exact_match"])


def test_groups_have_means_of_their_own():
    chosen = metrics.choose(["rsvqa_accuracy"])
    rows = rows_of([("yes", "yes"), ("no", "yes")], chosen, question_type="presence")
    rows += rows_of([("4", "4")], chosen, question_type="count")
    scores = text_metrics.aggregate(rows, metrics=chosen)
    assert scores["rsvqa_accuracy"] == pytest.approx(2 / 3) and scores["rsvqa_average"] == 0.75
    assert scores["per_group"] == {
        "question_type: count": {"rsvqa_accuracy": 1.0, "num_examples": 1},
        "question_type: presence": {"rsvqa_accuracy": 0.5, "num_examples": 2},
    }


def test_rows_that_cannot_be_scored_say_what_they_lack():
    chosen = metrics.choose(["rsvqa_accuracy"])
    problem = text_metrics.check_row({"id": 3}, chosen)
    assert problem == "score 'rsvqa_accuracy' needs the key 'question_type'; found ['id']"
    assert "expected a list of texts" in text_metrics.check_row({"answers": "yes"}, EXACT)
    assert text_metrics.check_row({"answers": ["yes"]}, EXACT) is None


def test_wrong_names_are_told_with_the_near_miss():
    with pytest.raises(ValueError, match="Did you mean 'vqa_accuracy'"):
        metrics.choose(["vqa_acuracy"])
    with pytest.raises(ValueError, match="METEOR needs Java"):
        metrics.choose(["meteor"])
    with pytest.raises(ValueError, match="each once"):
        metrics.choose(["anls", "anls"])
    with pytest.raises(ValueError, match="one name or more"):
        metrics.choose([])


def test_answers_that_are_classes_have_a_confusion_matrix():
    pairs = [("yes", "yes")] * 3 + [("no", "yes"), ("no", "no"), (" no", "no"), ("maybe", "no")]
    scores = text_metrics.aggregate(rows_of(pairs, EXACT), metrics=EXACT)
    assert scores["confusion"] == {
        "labels": ["no", "yes", "(other)"],
        "counts": [[2, 0, 1], [1, 3, 0], [0, 0, 0]],
    }
    rows = rows_of([("2", "two")], EXACT, answers=["two", "2"]) + rows_of(pairs, EXACT)
    assert "confusion" not in text_metrics.aggregate(
        rows, metrics=EXACT
    )  # three classes of eight rows
    rows += rows_of([("2", "two")] * 2, EXACT, answers=["two", "2"])
    confusion = text_metrics.aggregate(rows, metrics=EXACT)["confusion"]
    assert confusion["counts"][confusion["labels"].index("two")] == [0, 3, 0, 0]


def test_answers_in_sentences_have_no_confusion_matrix():
    rows = rows_of([(f"answer {n}", f"answer {n}") for n in range(50)], EXACT)
    assert "confusion" not in text_metrics.aggregate(rows, metrics=EXACT)


@given(st.text(max_size=30))
def test_parse_undoes_format_up_to_the_canonical_form(answer):
    assert text_metrics.canonical(text_metrics.format_answer(answer)) == text_metrics.canonical(
        answer
    )
    assert text_metrics.format_answer(text_metrics.canonical(answer)) == text_metrics.canonical(
        answer
    )


def test_an_empty_training_answer_is_named():
    assert text_metrics.check_answer(" ") == "the answer is empty"
    assert text_metrics.check_answer("yes") is None

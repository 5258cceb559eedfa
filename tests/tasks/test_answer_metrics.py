"""Scores equal those of big_vision's evaluators: tests/reference/make_answer_scores.py."""

import json
import pathlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma_jax.tasks import answer_metrics, metrics, text_metrics

REFERENCE = pathlib.Path(__file__).parents[1] / "reference" / "answer_scores.json"
CASES = json.loads(REFERENCE.read_text())["answers"]
# What big_vision calls it, where that is not acc: theirs -> ours.
ACCURACY = {"chartqa": "relaxed_acc", "rsvqa": "acc_any"}


def score(row, chosen):
    text, extra = row["prediction"], {key: row[key] for key in row if key != "prediction"}
    made = text_metrics.score_example(
        text, suffix=extra.pop("answer", None), extra=extra, metrics=chosen
    )
    return {"prediction": text, **made}


@pytest.mark.parametrize("case", CASES, ids=[case["metric"] for case in CASES])
def test_each_answer_scores_as_in_big_vision(case):
    chosen = metrics.choose([case["metric"]])
    name = ACCURACY.get(case["evaluator"], "acc")
    found = [score(row, chosen)["score"] for row in case["rows"]]
    expected = [scores[name] for scores in case["each"]]
    differing = [
        (row, ours, theirs)
        for row, ours, theirs in zip(case["rows"], found, expected, strict=True)
        if ours != pytest.approx(theirs, abs=1e-6)
    ]
    assert not differing


@pytest.mark.parametrize("case", CASES, ids=[case["metric"] for case in CASES])
def test_a_data_set_scores_as_in_big_vision(case):
    chosen = metrics.choose([case["metric"]])
    scores = text_metrics.aggregate([score(row, chosen) for row in case["rows"]], metrics=chosen)
    expected = case["all"]
    name = ACCURACY.get(case["evaluator"], "acc")
    assert scores[case["metric"]] == pytest.approx(expected[name], abs=1e-6)
    found = {
        "valid_percent": scores.get("pope_valid"),
        "parsefail": scores.get("scienceqa_parse_failures"),
        "acc_avg": scores.get("rsvqa_average"),
    }
    groups = scores.get("per_group", {})
    for group, values in groups.items():
        kind = group.partition(": ")[2]
        theirs = {"1": "acc/simple", "0": "acc/complex", "yes/no": "acc/yesno"}.get(kind)
        theirs = theirs or (f"acc_{kind}" if case["evaluator"] == "rsvqa" else f"acc/{kind}")
        found[theirs] = values[case["metric"]]
    for count, values in scores.get("per_count", {}).items():
        found[f"acc/count_{count}"] = values["tallyqa_accuracy"]
    compared = [key for key in found if key in expected]
    assert {key: found[key] for key in compared} == pytest.approx(
        {key: expected[key] for key in compared}
    )
    others = {name, "acc", "acc_any", "anls", "num", "relaxed_acc", "acc_avg_nonum"}
    uncompared = {key for key in expected if not key.startswith("num/")} - set(compared) - others
    assert not uncompared


def test_rsvqas_questions_without_numbers_have_a_mean():
    """big_vision has the three types' mean and the two types' under one name: the latter stays."""
    chosen = metrics.choose(["rsvqa_accuracy"])
    (case,) = [case for case in CASES if case["evaluator"] == "rsvqa"]
    rows = [score(row, chosen) for row in case["rows"]]
    low = text_metrics.aggregate(rows, metrics=chosen)["rsvqa_average_nonum"]
    assert low == pytest.approx((1.0 + 0.5 + 0.5) / 3)  # comp, presence, rural_urban
    rows = [row for row in rows if row["groups"]["question_type"] != "rural_urban"]
    high = text_metrics.aggregate(rows, metrics=chosen)["rsvqa_average_nonum"]
    assert high == pytest.approx(case["all"]["acc_avg_nonum"])


def test_edit_distances_score_as_in_big_vision():
    chosen = metrics.choose(["anls"])
    for case in CASES:
        if case["evaluator"] == "vqa":
            rows = [score(row, chosen) for row in case["rows"]]
            expected = [scores["anls"] for scores in case["each"]]
            assert [row["score"] for row in rows] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("truth", ["b", "the answer is 1.", ""])
def test_scienceqa_gives_no_point_where_answer_and_truth_both_lack_a_letter(truth):
    """big_vision reads both as "failed" and gives 1: third_party/README.md states it."""
    chosen = metrics.choose(["scienceqa_accuracy"])
    rows = [score({"prediction": "I do not know", "answer": truth}, chosen)]
    scores = text_metrics.aggregate(rows, metrics=chosen)
    assert (scores["scienceqa_accuracy"], scores["scienceqa_parse_failures"]) == (0.0, 1.0)
    assert score({"prediction": truth, "answer": truth}, chosen)["score"] == 0.0


def test_counts_above_fifteen_are_scored_too():
    """big_vision's evaluator ends with a KeyError there."""
    chosen = metrics.choose(["tallyqa_accuracy"])
    rows = [score({"prediction": "twenty", "answer": "20", "issimple": 1}, chosen)]
    assert text_metrics.aggregate(rows, metrics=chosen)["per_count"] == {
        "20": {"tallyqa_accuracy": 1.0, "num": 1}
    }


def test_vqav2_takes_any_number_of_people():
    assert answer_metrics.vqav2_accuracy("yes", ["yes"]) == 1.0
    assert answer_metrics.vqav2_accuracy("yes", ["yes", "no", "yes", "yes"]) == pytest.approx(
        (3 * 2 / 3 + 1) / 4
    )


def test_case_and_spaces_do_not_matter():
    assert answer_metrics.exact_match("Two  dogs\n", ["two dogs"]) == 1.0
    assert answer_metrics.pope_accuracy("yes", ["Yes"]) == 1.0
    assert answer_metrics.relaxed_accuracy(" 10.4", ["10"]) == 1.0


LETTERS = st.text(alphabet="abcé", max_size=70)


@given(LETTERS, LETTERS)
def test_the_edit_distance_is_that_of_the_table(first, second):
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (letter != other))
    longer = max(len(first), len(second))
    expected = (
        1 - row[-1] / longer
        if longer and row[-1] < 0.5 * longer
        else float(not second and not first)
    )
    assert answer_metrics.anls(first, [second]) == pytest.approx(expected)


def test_long_texts_are_compared_in_little_time():
    start = time.process_time()
    assert answer_metrics.anls("ab" * 10_000, ["ba" * 10_000 + "c"]) > 0.99
    assert answer_metrics.anls("a" * 1_000_000, ["a" * 100_000]) == 0
    assert time.process_time() - start < 5  # the table of distances itself: minutes

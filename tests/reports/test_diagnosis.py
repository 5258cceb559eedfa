import pytest

from paligemma_jax.reports import diagnosis

GOOD = {
    **{"loss": 0.4, "map50": 0.95, "map75": 0.9, "precision50": 0.96, "recall50": 0.94},
    **{"num_images": 40, "num_truths": 80, "num_predictions": 79, "dropped": {}},
    **{"num_hit_max_new_tokens": 0},
    "confusion": {
        "labels": ["cat", "dog", "(other)", "(nothing)"],
        "counts": [[38, 1, 0, 1], [0, 39, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]],
    },
}
FLAT = [{"step": step, "loss": 0.35} for step in range(1, 13)]


def diagnose(changes=None, history=FLAT):
    scores = {**GOOD, **(changes or {})}
    return diagnosis.diagnose(scores, history, evaluation="valid", first=("map50",))


def test_a_good_run_is_good():
    assert diagnose() == diagnosis.Diagnosis("good", "good", "Good: nothing stands out.")


def test_a_validation_loss_far_above_that_of_training_is_overfitting():
    history = [
        {"step": 10 * n, "loss": 1 / n, "valid/loss": abs(n - 4) + 1.2} for n in range(1, 51)
    ]
    found = diagnose({"loss": 6.7}, history)
    assert found.kind == "overfitted" and found.mood == "bad"
    assert found.text == (
        "Overfitted: the loss is 0.021 in training and 6.7 on valid, and was 1.2 at step 40. "
        "Stop earlier (keep_best), or add data or augmentation."
    )


def test_overfitting_that_was_never_better_asks_for_data():
    history = [{"step": 1, "loss": 0.02, "valid/loss": 6.7}]
    found = diagnose({"loss": 6.7}, history)
    assert found.text.endswith("6.7 on valid. Add data or augmentation.")


def test_small_losses_that_differ_by_a_factor_are_no_overfitting():
    history = [{"step": 1, "loss": 0.001}]
    assert diagnose({"loss": 0.01}, history).kind == "good"


def test_one_odd_step_at_the_end_does_not_count():
    history = [*FLAT, {"step": 13, "loss": 0.0001}]
    assert diagnose({"loss": 0.5}, history).kind == "good"


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"loss": float("nan")}, "diverged", "no number any more"),
        ({"dropped": {"loc_count": 40}}, "malformed", "34% of the predicted objects cannot be"),
        ({"num_predictions": None, "json_valid": 0.5}, "malformed", "50% of the answers cannot"),
        ({"num_hit_max_new_tokens": 12}, "cut off", "12 of 40 answers were cut off"),
        ({"num_predictions": 0}, "nothing yet", "Nothing is predicted: train for more steps"),
        ({"precision50": 0.01, "recall50": 0.02}, "nothing yet", "Hardly a box is where"),
        ({"recall50": 0.3}, "missed", "70% of the true ones are not predicted"),
        ({"precision50": 0.25}, "invented", "75% of the predicted ones are not there"),
        ({"map75": 0.2}, "imprecise", "0.95 at IoU 0.5 and 0.20 at 0.75"),
        ({"map50": 0.7}, "fair", "Nothing stands out"),
    ],
)
def test_what_is_most_wrong_is_named(changes, kind, words):
    found = diagnose(changes)
    assert found.kind == kind and words in found.text


def test_malformed_answers_say_what_helps():
    assert "--eval.constrain=task" in diagnose({"dropped": {"loc_count": 40}}).text


def test_two_classes_taken_for_each_other_are_named_the_worst_pair():
    counts = [[30, 8, 2, 0], [9, 20, 0, 1], [0, 0, 38, 0], [5, 5, 5, 0]]
    confusion = {"labels": ["cat", "dog", "eel", "(nothing)"], "counts": counts}
    found = diagnose({"confusion": confusion})
    assert found.kind == "mixed up"
    assert found.text.startswith("Classes mixed up: “cat” and “dog” 17 times (24%).")


def test_missing_objects_are_no_class_to_be_mixed_up_with():
    counts = [[3, 0, 30], [0, 3, 30], [30, 30, 0]]
    confusion = {"labels": ["cat", "dog", "(nothing)"], "counts": counts}
    assert diagnose({"confusion": confusion}).kind != "mixed up"


def test_two_mistakes_among_few_are_no_pattern():
    confusion = {"labels": ["cat", "dog"], "counts": [[2, 2], [0, 2]]}
    assert diagnose({"confusion": confusion}).kind == "good"


def test_a_loss_that_still_falls_asks_for_more_steps():
    falling = [{"step": step, "loss": 8 / step} for step in range(1, 21)]
    assert "still falls" in diagnose({"map50": 0.6}, falling).text
    assert "the loss still falls" in diagnose({"num_predictions": 0}, falling).text


def test_without_scores_and_history_nothing_is_claimed():
    found = diagnosis.diagnose({})
    assert found == diagnosis.Diagnosis("unknown", "neutral", "There is no score to judge by.")

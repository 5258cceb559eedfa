"""Answers that name boxes until they are cut off, and which of them are believed in."""

import numpy as np
import pytest

from paligemma_jax.tasks import box_text, detection, task

CAT, DOG = "<loc0100><loc0200><loc0300><loc0400>", "<loc0500><loc0500><loc0900><loc0900>"
SUFFIX = f"{CAT} cat"


def tokens(*labels: tuple[str, list[float]], cut: str = ""):
    """(piece, log-probability): every box with its label's pieces, the space a piece of its own."""
    found = []
    for box, (label, probabilities) in zip((CAT, DOG, CAT), labels, strict=False):
        found += [(f"{piece}>", -3.0) for piece in box.split(">")[:-1]]
        pieces = [" ", *label][: len(probabilities)]
        found += [(p, float(np.log(q))) for p, q in zip(pieces, probabilities, strict=True)]
        found += [(" ;", 0.0), (" ", 0.0)]
    return [*found, *((piece, -1.0) for piece in cut)]


def test_a_labels_likelihood_is_the_product_of_its_tokens_and_its_space():
    found = tokens(("ab", [0.5, 0.8, 0.9]), ("c", [0.25, 1.0]))
    np.testing.assert_allclose(box_text.label_scores(found), [0.36, 0.25], rtol=1e-6)
    assert box_text.label_scores([]).shape == (0,)


def test_a_label_in_one_piece_with_its_space_counts_once():
    found = [(CAT, -5.0), (" cat", float(np.log(0.7))), (" ;", -2.0)]
    np.testing.assert_allclose(box_text.label_scores(found), [0.7], rtol=1e-6)


def test_boxes_are_split_by_what_is_likelier_than_noise():
    found = tokens(("cat", [0.9, 1.0, 1.0, 1.0]), ("dog", [0.1, 1.0, 1.0, 1.0]))
    row = detection.score_with_noise("", suffix=SUFFIX, tokens=found)
    assert [(d["label"], d["score"]) for d in row["detections"]] == [("cat", 0.9)]
    assert [(d["label"], d["score"]) for d in row["unsure"]] == [("dog", 0.1)]
    assert (row["matched"], row["score"], row["correct"]) == (1, 1.0, True)
    assert row["dropped"] == {}


def test_what_was_cut_off_does_not_count():
    found = tokens(("cat", [1.0] * 4), cut="<loc0100>")
    row = detection.score_with_noise("", suffix=SUFFIX, tokens=found)
    assert len(row["detections"]) == 1 and row["dropped"] == {}
    text = detection.score_with_noise(f"{SUFFIX} ; {DOG} do", suffix=SUFFIX)
    assert len(text["detections"]) == 1 and text["unsure"] == []
    assert detection.score_with_noise(CAT, suffix=SUFFIX)["detections"] == []


def test_an_object_is_whole_where_another_begins_without_separator():
    cat, dog = tokens(("cat", [1.0] * 4))[:-2], tokens(("dog", [1.0] * 4))
    row = detection.score_with_noise("", suffix=SUFFIX, tokens=cat + dog)
    assert [d["label"] for d in row["detections"]] == ["cat", "dog"]
    assert box_text.drop_unfinished(cat + dog[:-2]) == cat
    assert box_text.drop_unfinished(cat) == []


def test_average_precision_alone_looks_at_unsure_boxes():
    sure = tokens(("dog", [0.9, 1.0, 1.0, 1.0]), ("cat", [0.1, 1.0, 1.0, 1.0]))
    truth = f"{CAT} dog ; {DOG} cat"
    rows = [
        {
            "prefix": "detect all classes",
            **detection.score_with_noise("", suffix=truth, tokens=sure),
        }
    ]
    scores = detection.aggregate(rows)
    assert scores["map50"] == pytest.approx(1.0)
    assert (scores["num_predictions"], scores["recall50"]) == (1, 0.5)
    assert scores["confusion"]["labels"] == ["cat", "dog", "(other)", "(nothing)"]


def test_the_task_reads_its_own_convention():
    made = task.choose("detection", task.Options(convention="1024", noise_boxes=True))
    row = made.score_example(f"{SUFFIX} ; ", suffix=SUFFIX)
    assert row["detections"][0]["box_yxyx"][0] == round(100 / 1024, 6)
    assert made.metric == "map50"


def test_a_prompt_for_all_classes_names_none():
    assert box_text.prefix_classes("detect all classes\n") == []
    assert box_text.prefix_classes("detect all classes ; cat") == ["all classes", "cat"]

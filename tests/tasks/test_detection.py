import json

import numpy as np
import pytest

from paligemma_jax.tasks import box_text, detection

LEFT, RIGHT = [0.0, 0.0, 1.0, 0.4], [0.0, 0.6, 1.0, 1.0]


def text(*objects):
    boxes = np.array([box for box, _ in objects], np.float32)
    return box_text.format(box_text.Detections(boxes, tuple(label for _, label in objects)))


def row(predicted, truth, scores=None):
    """A row as `score_example` makes it, with confidences put in by hand."""
    made = detection.score_example(text(*predicted), suffix=text(*truth)) | {
        "prefix": "detect cat ; dog",
        "prediction": text(*predicted),
    }
    for found, score in zip(made["detections"], scores or [], strict=scores is not None):
        found["score"] = score
    return made


def wide(box, share):
    """The box, cut to this share of its height: its IoU with the whole."""
    return [box[0], box[1], box[0] + share * (box[2] - box[0]), box[3]]


def test_perfect_boxes_score_one():
    truth = [(LEFT, "cat"), (RIGHT, "dog")]
    scores = detection.aggregate([row(truth, truth), row(truth[::-1], truth)])
    for key in ("map", "map50", "map75", "precision50", "recall50", "image_score", "correct"):
        assert scores[key] == pytest.approx(1.0), key
    assert scores["per_class"]["cat"]["map"] == pytest.approx(1.0)
    assert scores["mean_iou"] == pytest.approx(1.0, abs=1e-5)


def test_shifted_boxes_count_up_to_their_overlap():
    # IoU 0.72 passes the thresholds 0.50 .. 0.70: five of ten.
    scores = detection.aggregate([row([(wide(LEFT, 0.72), "cat")], [(LEFT, "cat")])])
    assert scores["map50"] == pytest.approx(1.0)
    assert scores["map75"] == 0.0
    assert scores["map"] == pytest.approx(0.5)
    assert scores["mean_iou"] == pytest.approx(0.72, abs=1e-3)


def test_a_wrong_class_finds_nothing():
    scores = detection.aggregate([row([(LEFT, "dog")], [(LEFT, "cat")])])
    assert scores["map50"] == scores["precision50"] == scores["recall50"] == 0.0
    labels = scores["confusion"]["labels"]
    assert labels == ["cat", "dog", "(other)", "(nothing)"]
    assert scores["confusion"]["counts"] == [[0, 1, 0, 0], [0] * 4, [0] * 4, [0] * 4]


def test_a_confident_false_box_halves_precision_at_every_recall():
    # Ranked first: false, then true. Interpolated precision is 1/2 at all 101 recalls.
    rows = [row([(RIGHT, "cat"), (LEFT, "cat")], [(LEFT, "cat")], scores=[0.9, 0.1])]
    assert detection.aggregate(rows)["map50"] == pytest.approx(0.5)
    # Ranked last it costs nothing in average precision, but it does in precision.
    rows = [row([(RIGHT, "cat"), (LEFT, "cat")], [(LEFT, "cat")], scores=[0.1, 0.9])]
    assert detection.aggregate(rows)["map50"] == pytest.approx(1.0)
    assert detection.aggregate(rows)["precision50"] == 0.5


def test_half_of_the_truths_found_gives_the_51_recalls_up_to_one_half():
    truth = [(LEFT, "cat"), (RIGHT, "cat")]
    scores = detection.aggregate([row([(LEFT, "cat")], truth)])
    assert scores["map"] == pytest.approx(51 / 101)
    assert scores["recall50"] == 0.5
    assert scores["pr_curves"] == {"cat": pytest.approx([1.0] * 51 + [0.0] * 50)}


def test_classes_weigh_equally_in_the_mean():
    rows = [row([(LEFT, "cat"), (RIGHT, "cat")], [(LEFT, "cat"), (RIGHT, "cat")])] * 3
    rows += [row([], [(LEFT, "dog")])]
    scores = detection.aggregate(rows)
    assert scores["map50"] == pytest.approx(0.5)
    assert scores["per_class"]["dog"]["map50"] == 0.0
    assert np.isnan(scores["per_class"]["dog"]["precision50"])


def test_duplicates_are_false_and_counted():
    truth = [(LEFT, "cat")]
    scores = detection.aggregate([row([*truth, *truth, (wide(LEFT, 0.95), "cat")], truth)])
    assert scores["duplicates"] == 2
    assert scores["precision50"] == pytest.approx(1 / 3)
    assert scores["count_correct"] == 0.0
    # The same box under another label is an error, not a duplicate.
    assert detection.aggregate([row([*truth, (LEFT, "dog")], truth)])["duplicates"] == 0


def test_labels_nobody_asked_for_are_false_and_reported():
    rows = [row([(LEFT, "cat"), (RIGHT, "unicorn")], [(LEFT, "cat"), (RIGHT, "cat")])]
    scores = detection.aggregate(rows)
    assert scores["unknown_labels"] == {"unicorn": 1}
    assert scores["precision50"] == 0.5
    assert list(scores["per_class"]) == ["cat"]
    # cat: one found, one taken for something else; nothing else was predicted.
    assert scores["confusion"]["counts"][0] == [1, 0, 1, 0]


def test_confusion_counts_missed_and_invented_boxes():
    rows = [row([], [(LEFT, "cat")]), row([(LEFT, "dog")], []), row([], [])]
    scores = detection.aggregate(rows)
    assert scores["confusion"]["counts"] == [[0, 0, 0, 1], [0] * 4, [0] * 4, [0, 1, 0, 0]]


def test_images_with_nothing_do_not_break_the_scores():
    scores = detection.aggregate([row([], [])])
    assert scores["image_score"] == scores["correct"] == 1.0
    assert scores["empty"] == scores["num_images"] == 1
    assert np.isnan(scores["map"]) and np.isnan(scores["precision50"])
    mixed = detection.aggregate([row([], []), row([(LEFT, "cat")], [(LEFT, "cat")])])
    assert mixed["map"] == pytest.approx(1.0)
    assert np.isnan(detection.aggregate([])["map"])


def test_a_box_where_there_should_be_none_counts():
    rows = [row([(LEFT, "cat")], [(LEFT, "cat")], [0.5]), row([(LEFT, "cat")], [], [0.9])]
    assert detection.aggregate(rows)["map50"] == pytest.approx(0.5)


def test_same_label_is_matched_before_a_better_overlap_of_another():
    truth = box_text.parse(text((LEFT, "cat")))
    predicted = box_text.parse(text((LEFT, "dog"), (wide(LEFT, 0.6), "cat")))
    (pair,) = detection.match(truth, predicted, min_iou=0.5)
    assert (pair.prediction, pair.same_label) == (1, True)


def test_an_image_is_judged_by_overlap_and_by_count():
    truth = [(LEFT, "cat"), (RIGHT, "cat")]
    made = row([(LEFT, "cat")], truth)
    assert made["score"] == pytest.approx(2 / 3)
    assert (made["matched"], made["correct"]) == (1, False)
    poor = row([(wide(LEFT, 0.4), "cat")], [(LEFT, "cat")])
    assert poor["score"] == pytest.approx(0.4, abs=1e-3)
    assert (poor["matched"], poor["correct"]) == (0, False)


def test_a_row_is_json_and_carries_confidences():
    tokens = [(f"<loc{value:04d}>", 0.0) for value in (0, 0, 1023, 341)]
    tokens += [("▁cat", float(np.log(0.5))), ("▁;", 0.0), ("▁dog", 0.0)]
    made = detection.score_example("ignored: tokens say it all", suffix="", tokens=tokens)
    assert json.loads(json.dumps(made)) == made
    (found,) = made["detections"]
    assert found == {"box_yxyx": [0.0, 0.0, 1.0, 0.333333], "label": "cat", "score": 0.5}
    assert made["dropped"] == {"no_loc": 1}


def test_without_truth_a_row_has_boxes_but_no_score():
    made = detection.score_example(text((LEFT, "cat")), suffix=None)
    assert made["truths"] is made["score"] is made["correct"] is None
    assert len(made["detections"]) == 1
    assert detection.aggregate([made])["num_images"] == 0


def test_a_truth_that_is_no_detection_is_an_error():
    with pytest.raises(ValueError, match="the true suffix is no detection: object 1 has no <loc>"):
        detection.score_example("", suffix="a cat")


def test_scores_print_nothing(capfd):
    detection.aggregate([row([(LEFT, "cat")], [(LEFT, "cat")])])
    assert capfd.readouterr() == ("", "")

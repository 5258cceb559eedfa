import json
import math

import numpy as np
import pytest

from paligemma_jax.models import mask_codec
from paligemma_jax.tasks import geometry, segmentation

LEFT, RIGHT = "<loc0000><loc0000><loc1023><loc0511>", "<loc0000><loc0512><loc1023><loc1023>"
FULL, EMPTY = "<seg001>" * 16, "<seg000>" * 16


def fill(codes):
    """A codec without a codebook: each code of a 4x4 grid fills its cell or does not."""
    return np.kron(np.minimum(codes, 1).reshape(-1, 4, 4), np.ones((1, 16, 16))) * 2.0 - 1


def score(prediction, suffix, **arguments):
    return segmentation.score_example(prediction, suffix=suffix, codec=fill, **arguments)


def test_scores_equal_big_visions(reference_arrays, reference_folder):
    expected = json.loads((reference_folder / "segmentation_scores.json").read_text())
    weights, rows, codec = reference_arrays("seg_weights"), [], {}

    def decode(codes):
        key = codes.tobytes()
        if key not in codec:
            codec[key] = np.asarray(mask_codec.decode(weights, codes))
        return codec[key]

    for case in expected["rows"]:
        size = case["size"]
        if "truth" in case:
            bits = np.unpackbits(np.frombuffer(bytes.fromhex(case["truth"]), np.uint8))
            mask = bits[: math.prod(size)].reshape(1, *size).astype(bool)
        truth = geometry.Regions(np.float32([case["box_yxyx"]]), ("",), mask)
        made = segmentation.score_example(
            case["prediction"], suffix=f"{LEFT}{FULL}", draw_truth=lambda t=truth: t, codec=decode
        )
        found = segmentation.aggregate([made])
        compare(found, case["scores"])
        rows.append(made)
    compare(segmentation.aggregate(rows), expected["all"])


def compare(found, expected):
    assert found["miou"] == pytest.approx(expected["miou"], abs=1e-6)
    assert found["box_accuracy50"] == pytest.approx(expected["boxacc/0.5"])
    assert found["box_accuracy75"] == pytest.approx(expected["boxacc/0.75"])
    assert found["invalid"] == expected["invalid"]
    assert found["num_truths"] == expected["total"]


def test_a_mask_is_judged_by_its_pixels():
    half = "<seg001>" * 8 + "<seg000>" * 8
    row = score(f"{LEFT}{half} cat", f"{LEFT}{FULL} cat")
    assert row["score"] == row["mean_iou"] == pytest.approx(0.5, abs=0.01)
    assert row["truths"][0]["box_iou"] == 1.0 and row["matched"] == 1 and row["correct"]
    assert geometry.unpack_mask(row["detections"][0]["mask"]).mean() == 0.5
    scores = segmentation.aggregate([row])
    assert scores["miou"] == pytest.approx(0.5, abs=0.01)
    assert scores["per_class"]["cat"]["pixel_iou"] == scores["pixel_iou"] == scores["miou"]


def test_pictures_show_the_true_outline_and_not_what_its_tokens_say():
    drawn = np.zeros((2, 8, 8), bool)
    drawn[0, :4, :4] = True
    boxes = np.float32([[0, 0, 1, 0.5], [0, 0, 0.05, 0.05]])
    regions = geometry.Regions(boxes, ("cat", "dog"), drawn)
    tiny = f"<loc0000><loc0000><loc0051><loc0051>{FULL} dog"
    row = score("", f"{LEFT}{FULL} cat ; {tiny}", draw_truth=lambda: regions)
    shown = [geometry.unpack_mask(truth["mask"]) for truth in row["truths"]]
    assert shown[0][:32].all() and not shown[0][32:].any()
    assert not shown[1].any()  # its box has no pixel


def test_objects_are_paired_by_label_and_then_by_overlap():
    truth = f"{LEFT}{FULL} cat ; {RIGHT}{FULL} dog"
    row = score(f"{RIGHT}{FULL} dog ; {LEFT}{FULL} cat", truth)
    assert row["score"] == 1.0 and row["correct"]
    swapped = score(f"{LEFT}{FULL} dog ; {RIGHT}{FULL} cat", truth)
    assert swapped["score"] == 0.0 and not swapped["correct"]


def test_what_the_text_names_beyond_the_number_of_truths_counts_for_nothing():
    row = score(f"{RIGHT}{FULL} cat ; {LEFT}{FULL} cat", f"{LEFT}{FULL} cat")
    assert row["score"] == 0.0 and not row["correct"]
    first = score(f"{LEFT}{FULL} cat ; {RIGHT}{FULL} cat", f"{LEFT}{FULL} cat")
    assert first["score"] == 1.0 and not first["correct"]


def test_images_without_objects_and_rows_without_truth():
    assert score("", "")["score"] == 1.0
    assert score(f"{LEFT}{FULL}", "")["score"] == 0.0
    unknown = score(f"{LEFT}{FULL} cat", None)
    assert unknown["truths"] is None and unknown["detections"][0]["label"] == "cat"
    scores = segmentation.aggregate([unknown])
    assert math.isnan(scores["miou"]) and scores["num_images"] == 0


def test_an_answer_whose_mask_is_empty_is_answered_but_scores_nothing():
    row = score(f"{LEFT}{EMPTY} cat", f"{LEFT}{FULL} cat")
    scores = segmentation.aggregate([row])
    assert scores["invalid"] == 0 and scores["miou"] == 0.0 and scores["box_accuracy75"] == 1.0


def test_a_truth_that_contradicts_its_masks_is_an_error():
    regions = geometry.Regions(np.zeros((0, 4), np.float32), (), np.zeros((0, 8, 8), bool))
    with pytest.raises(ValueError, match="names 1 objects, the row's key 'objects' 0"):
        score("", f"{LEFT}{FULL}", draw_truth=lambda: regions)
    with pytest.raises(ValueError, match="the true suffix is no segmentation"):
        score("", LEFT)


def test_confusion_counts_labels_of_boxes_that_overlap():
    truth = f"{LEFT}{FULL} cat ; {RIGHT}{FULL} dog"
    made = [score(f"{LEFT}{FULL} cat ; {RIGHT}{FULL} cat", truth), score("", truth)]
    assert segmentation.aggregate(made)["confusion"] == {
        "labels": ["cat", "dog", "(other)", "(nothing)"],
        "counts": [[1, 0, 0, 1], [1, 0, 0, 1], [0] * 4, [0] * 4],
    }

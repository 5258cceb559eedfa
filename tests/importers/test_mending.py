"""A source's own answers: what a task reads of them is kept, in canonical form."""

import pytest

from paligemma_jax.data import objects
from paligemma_jax.importers import example, mending
from paligemma_jax.tasks import task

PICTURE = example.Picture("a.png", "a.png")
CAR, BUS = "<loc0010><loc0020><loc0300><loc0400>", "<loc0500><loc0500><loc0900><loc0800>"
FLAT = "<loc0700><loc0100><loc0700><loc0200>"
SEGS = "".join(f"<seg{n:03d}>" for n in range(16))


def mend(suffix, task_name="detection", prefix="detect car ; bus", kept=None):
    tally = example.Tally()
    item = example.Example(PICTURE, "x:1", prefix=prefix, suffix=suffix, objects=kept)
    return mending.mend(item, prefix, task.trained_as(task_name), tally), tally


@pytest.mark.parametrize(
    "suffix",
    [
        f"{CAR} car; {BUS} bus; ",
        f"{CAR}car;{BUS}bus",
        f"{CAR} car, {BUS} bus.",
        f"  {CAR}  car\n;{BUS} bus ;; ",
    ],
)
def test_objects_that_can_be_read_are_written_anew_and_counted(suffix):
    (text, _), tally = mend(suffix)
    assert text == f"{CAR} car ; {BUS} bus"
    assert tally.changed == {"suffixes written anew": 1} and not tally.drops


def test_a_point_stays_where_the_prompt_asks_for_a_class_that_has_it():
    (text, _), tally = mend(f"{CAR} Ficus sp.", prefix="detect Ficus sp.")
    assert text == f"{CAR} Ficus sp." and not tally.changed


def test_a_blank_suffix_is_an_image_without_objects():
    (text, _), tally = mend(" ", "segmentation", "segment car")
    assert text == "" and tally.changed == {"suffixes written anew": 1}


def test_a_flat_box_costs_its_object_beside_the_suffix_too():
    boxes = [[1, 1, 9, 9], [5, 20, 6, 21], [20, 2, 30, 40]]
    kept = objects.make(64, 48, ["car", "van", "bus"], boxes)
    (text, left), tally = mend(f"{CAR} car ; {FLAT} van ; {BUS} bus", kept=kept)
    assert text == f"{CAR} car ; {BUS} bus" and left.labels == ("car", "bus")
    assert left.boxes_xyxy.tolist() == [boxes[0], boxes[2]]
    (drop,) = tally.drops
    assert (drop.what, drop.reason, drop.detail) == (
        "object",
        "it covers no area",
        f"object 2, '{FLAT} van'",
    )
    assert not tally.changed


def test_masks_are_read_as_boxes_for_detection_which_is_counted():
    (text, _), tally = mend(f"{CAR}{SEGS} car")
    assert text == f"{CAR} car"
    assert tally.changed["objects written without <seg> tokens, as boxes"] == 1


@pytest.mark.parametrize("suffix", [f"{FLAT} car", "nothing here", "<loc0001> car"])
def test_a_suffix_of_which_nothing_can_be_read_is_no_image_without_objects(suffix):
    mended, tally = mend(suffix)
    assert mended is None and ("row", "bad suffix") in {(d.what, d.reason) for d in tally.drops}


def test_objects_that_are_not_the_suffix_s_are_dropped_and_the_row_stays():
    kept = objects.make(64, 48, ["car"], [[1, 1, 9, 9]])
    (text, left), tally = mend(f"{CAR} car ; {BUS} bus", kept=kept)
    assert (text, left) == (f"{CAR} car ; {BUS} bus", None)
    assert tally.drops[0].detail == "1 beside the 2 of the suffix"


def test_words_are_left_as_they_are():
    (text, _), tally = mend("Two cars.", "vqa", "answer en what?")
    assert text == "Two cars." and not tally.changed and not tally.drops

"""Prompts and answers of every task, and the check that answers read back."""

import json

import numpy as np
import pytest

from paligemma_jax.data import objects
from paligemma_jax.importers import example, formatting

PICTURE = example.Picture("a.png", "a.png")
LABELS = ("dime", "dime", "half dollar")


def coins(boxes=((0, 0, 32, 24), (32, 24, 64, 48), (5, 5, 9, 9)), outlines=None):
    made = objects.make(64, 48, LABELS[: len(boxes)], boxes, outlines)
    return example.Example(PICTURE, "x.json: image 1", None, made)


def make(task, one, **options):
    tally = example.Tally()
    formatter = formatting.Formatter(task, ("dime", "penny", "half dollar"), **options)
    return formatter.make(one, tally), formatter.round_trip, tally


def test_detection_asks_for_all_classes_and_reads_back():
    row, checked, _ = make("detection", coins())
    assert row.prefix == "detect dime ; penny ; half dollar"
    assert row.suffix.startswith("<loc0000><loc0000><loc0512><loc0512> dime ; <loc0512><loc0512>")
    assert checked.num_boxes == 3 and 0 < checked.worst_box <= formatting.HALF_BIN
    assert len(row.objects) == 3


def test_the_other_convention_reads_back_too():
    row, checked, _ = make("detection", coins(), coordinates="1024")
    assert "<loc0512><loc0512><loc1023><loc1023> dime" in row.suffix
    assert checked.worst_box == 1.0  # the far edge has no token of its own


def test_an_image_without_objects_has_an_empty_answer():
    assert make("detection", coins(boxes=()))[0].suffix == ""
    assert make("counting", coins(boxes=()))[0].suffix == "{}"


def test_counts_are_json_without_zeros():
    row, checked, _ = make("counting", coins())
    assert row.prefix == "count dime ; penny ; half dollar and answer in JSON"
    assert row.suffix == '{\n  "dime": 2,\n  "half dollar": 1\n}'
    assert json.loads(row.suffix) == {"dime": 2, "half dollar": 1} and checked.num_texts == 1
    assert len(row.objects) == 3


def test_a_box_smaller_than_a_bin_is_dropped_from_answer_and_objects_alike():
    row, _, tally = make("detection", coins(boxes=((0, 0, 32, 24), (5, 5, 5.01, 9))))
    assert row.suffix.count("dime") == 1 and len(row.objects) == 1
    assert [(drop.what, drop.reason) for drop in tally.drops] == [
        ("object", "smaller than a <loc> bin")
    ]
    row, _, tally = make("detection", coins(boxes=((5, 5, 5.01, 9),)))
    assert row is None and tally.drops[-1].what == "image"


def test_questions_and_captions_become_prompts():
    question = example.Example(PICTURE, "x:1", question="how many?", suffix="3")
    assert make("vqa", question)[0] == formatting.FormattedExample("answer en how many?", "3")
    assert make("vqa", question, prompt="{question}")[0].prefix == "how many?"
    asked = example.Example(PICTURE, "x:1", question="answer en how many?", suffix="3")
    row, _, tally = make("vqa", asked)
    assert row.prefix == "answer en how many?"
    assert tally.changed == {"prompts with their own 'answer en': written once": 1}
    caption = example.Example(PICTURE, "x:1", suffix="a coin")
    assert make("caption", caption)[0] == formatting.FormattedExample("caption en", "a coin")


def test_a_row_of_our_own_is_left_as_it_is_unless_its_suffix_is_bad():
    text = "<loc0000><loc0000><loc0512><loc0512> dime"
    ours = example.Example(PICTURE, "x:1", prefix="detect dime", suffix=text)
    assert make("detection", ours)[0] == formatting.FormattedExample("detect dime", text)
    bad = example.Example(PICTURE, "x:1", prefix="detect dime", suffix="<loc0000> dime")
    row, _, tally = make("detection", bad)
    assert row is None and "does not have exactly four" in tally.drops[0].reason
    empty = example.Example(PICTURE, "x:1", question="why?", suffix=" ")
    row, _, tally = make("vqa", empty)
    assert row is None and "the answer is empty" in tally.drops[0].detail


@pytest.mark.parametrize(
    ("task", "prompt", "message"),
    [
        ("detection", "detect {question}", "task detection knows {classes}"),
        ("vqa", "answer {classes}", "knows {question}"),
        ("caption", "caption {0}", "knows no field"),
        ("detection", "detect {", "--prompt 'detect {'"),
    ],
)
def test_a_prompt_with_other_fields_is_an_error(task, prompt, message):
    with pytest.raises(ValueError, match=message):
        formatting.Formatter(task, ("a",), prompt=prompt)


@pytest.mark.parametrize("name", ["a;b", "<loc0001>", "a <seg001>"])
def test_a_class_that_a_suffix_cannot_hold_is_an_error(name):
    with pytest.raises(ValueError, match=r"cannot be written in a suffix: .* Rename it"):
        formatting.Formatter("detection", ("cat", name))
    formatting.Formatter("counting", ("cat", name))


def half_codec(seen):
    """Returns a codec that remembers masks and decodes to the left half."""

    def encode(masks):
        seen.extend(masks)
        return np.tile(np.arange(16), (len(masks), 1))

    def decode(codes):
        assert codes.tolist() == [list(range(16))] * len(codes)
        return np.tile(np.where(np.arange(64) < 32, 1.0, -1.0), (len(codes), 64, 1))

    return formatting.MaskCodec(encode, decode)


def square(x0, y0, x1, y1):
    return (np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float),)


def test_segments_are_boxes_and_tokens_of_the_mask_in_its_box():
    boxes = ((8, 12, 32, 24), (0, 0, 9, 9))
    item = coins(boxes=boxes, outlines=(square(*boxes[0]), None))
    seen = []
    row, checked, tally = make("segmentation", item, codec=half_codec(seen))
    codes = "".join(f"<seg{number:03d}>" for number in range(16))
    assert row.prefix == "segment dime ; penny ; half dollar"
    assert row.suffix == f"<loc0256><loc0128><loc0512><loc0512>{codes} dime"
    assert len(row.objects) == 1 and [drop.reason for drop in tally.drops] == ["without an outline"]
    (mask,) = seen
    assert mask.shape == (64, 64) and mask.min() == 1
    assert checked.masks == [formatting.MaskCheck(item.source, 1, "dime", 0.5)]
    assert checked.num_boxes == 1


@pytest.mark.parametrize(
    ("box", "outline", "reason"),
    [
        ((10, 10, 10.3, 40), (10, 10, 30, 40), "box covers no pixel"),
        ((40, 10, 60, 30), (1, 1, 9, 9), "outline covers no pixel of its box"),
    ],
)
def test_objects_without_a_pixel_are_named(box, outline, reason):
    item = coins(boxes=(box,), outlines=(square(*outline),))
    row, checked, tally = make("segmentation", item, codec=half_codec([]))
    assert row is None and not checked.masks
    assert [(drop.what, drop.reason) for drop in tally.drops] == [
        ("object", reason),
        ("image", "none of its objects could be kept"),
    ]


def test_an_image_without_objects_has_no_segments():
    row, _, _ = make("segmentation", coins(boxes=(), outlines=()), codec=half_codec([]))
    assert row.suffix == "" and len(row.objects) == 0


def test_the_worst_mask_comes_first():
    checked = formatting.RoundTrip(
        masks=[formatting.MaskCheck("a", n, "x", n / 4) for n in (3, 1, 2)]
    )
    assert [mask.number for mask in checked.worst_masks()] == [1, 2, 3]

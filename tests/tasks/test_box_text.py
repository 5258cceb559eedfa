import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from paligemma_jax.tasks import box_text, geometry

ONE = "<loc0390><loc0241><loc0472><loc0440> fracture"
TWO = f"{ONE} ; <loc0000><loc0001><loc1023><loc1022> left hand"

LABELS = st.lists(st.text("aZ0é漢\u0301-'.>\U0001f9b4", min_size=1), min_size=1).map(" ".join)
BINS = st.tuples(*[st.integers(0, 500)] * 2, *[st.integers(501, 1023)] * 2)
CANONICAL = st.lists(st.tuples(BINS, LABELS), max_size=5).map(
    lambda objects: " ; ".join(
        "".join(f"<loc{value:04d}>" for value in bins) + f" {label}" for bins, label in objects
    )
)
# Text that is nearly a detection finds more than random characters would.
PARTS = """<loc0001> <loc0900> <loc1024> <loc12> <loc > <seg003> ; cat ٣ <loc٣٣٣٣> <0xE2> ▁dog"""
NEARLY = st.lists(
    st.sampled_from([*PARTS.split(), " ", "\n", " ; ", f"<loc{'9' * 5000}>"]), max_size=25
).map("".join)


@given(CANONICAL)
@example("")
@example(TWO)
def test_format_undoes_parse_on_canonical_text(text):
    for convention in geometry.CONVENTIONS:
        detections = box_text.parse(text, convention=convention)
        assert box_text.format(detections, convention=convention) == text
    assert box_text.check(text) is None
    assert not detections.dropped


@given(
    st.lists(
        st.tuples(
            st.floats(0, 0.99), st.floats(0, 0.99), st.floats(0.005, 1), st.floats(0.005, 1)
        ).map(lambda v: (v[0], v[1], min(v[0] + v[2], 1), min(v[1] + v[3], 1))),
        max_size=5,
    )
)
def test_parse_undoes_format_within_half_a_bin(boxes):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = tuple(f"thing {number}" for number in range(len(boxes)))
    back = box_text.parse(box_text.format(box_text.Detections(boxes, labels)))
    assert back.labels == labels
    assert back.boxes_yxyx.dtype == np.float32
    np.testing.assert_allclose(back.boxes_yxyx, boxes, atol=0.5 / 1023 + 1e-6)


@given(st.one_of(st.text(max_size=60), NEARLY))
@example("<loc0001><loc0001><loc0002><loc0002> \ud800")
def test_parse_reads_any_text_and_drops_nothing_silently(text):
    detections = box_text.parse(text)
    assert len(detections.boxes_yxyx) == len(detections.labels)
    boxes = detections.boxes_yxyx
    assert np.all((boxes >= 0) & (boxes <= 1)) and np.all(boxes[:, 2:] > boxes[:, :2])
    assert set(detections.dropped) <= set(box_text.REASONS)
    # What is kept can be written, and what is written is canonical.
    written = box_text.format(detections)
    assert box_text.check(written) is None
    if box_text.check(text) is None:
        assert written == text
    elif text.strip() and not detections.dropped:
        assert len(detections) > 0


@given(st.lists(st.tuples(NEARLY, st.floats(-20, 0)), max_size=6))
def test_every_parsed_object_gets_one_score(tokens):
    scores = box_text.box_scores(tokens)
    parsed = box_text.parse(box_text.join_pieces(piece for piece, _ in tokens))
    assert scores.shape == (len(parsed),)
    assert np.all((scores > 0) & (scores <= 1))


def test_the_four_numbers_are_y1_x1_y2_x2():
    (box,) = box_text.parse("<loc0000><loc0341><loc0682><loc1023> cat").boxes_yxyx
    np.testing.assert_allclose(box, [0, 1 / 3, 2 / 3, 1], atol=1e-6)
    (box,) = box_text.parse(
        "<loc0000><loc0256><loc0512><loc0768> cat", convention="1024"
    ).boxes_yxyx
    np.testing.assert_array_equal(box, [0, 0.25, 0.5, 0.75])


@pytest.mark.parametrize(
    ("text", "labels", "dropped"),
    [
        ("", (), {}),
        (" \n", (), {}),
        (TWO, ("fracture", "left hand"), {}),
        (ONE.replace(" ", "\n"), ("fracture",), {}),
        (ONE.replace("><", "> <") + ";" + ONE, ("fracture", "fracture"), {}),
        (f"{ONE} {ONE}", ("fracture", "fracture"), {}),
        ("no boxes here", (), {"no_loc": 1}),
        (f"I see {ONE}", ("fracture",), {"no_loc": 1}),
        (f"{ONE} ;", ("fracture",), {"empty": 1}),
        (f"; {ONE}", ("fracture",), {"empty": 1}),
        (f"{ONE} ; <loc0001><loc0002>", ("fracture",), {"loc_count": 1}),
        ("<loc0001><loc0002><loc0003><loc0004><loc0005> cat", (), {"loc_count": 1}),
        ("<loc0001><loc0002><loc0003><loc1024> cat", (), {"loc_range": 1}),
        ("<loc1><loc2><loc3><loc4> cat", (), {"loc_range": 1}),
        ("<loc0001><loc0002><loc0003><loc0004>", (), {"no_label": 1}),
        ("<loc0005><loc0002><loc0003><loc0004> cat", (), {"inverted": 1}),
        ("<loc0001><loc0002><loc0001><loc0004> cat", (), {"zero_area": 1}),
        (ONE.replace(" ", "<seg001><seg127> "), ("fracture",), {"seg_token": 2}),
        (f"<loc0001> ; cat ; {ONE}", ("fracture",), {"loc_count": 1, "no_loc": 1}),
    ],
)
def test_malformed_objects_are_dropped_and_counted(text, labels, dropped):
    detections = box_text.parse(text)
    assert detections.labels == labels
    assert detections.dropped == dropped


@pytest.mark.parametrize(
    ("suffix", "problem"),
    [
        ("a dog", "object 1 has no <loc> token before its label: 'a dog'"),
        (f"{ONE} ; <loc0001> cat", "object 2 does not have exactly four <loc> tokens"),
        ("<loc0001><loc0002><loc0003><loc1024> cat", "not four digits from 0000 to 1023"),
        ("<loc1><loc2><loc3><loc4> cat", "not four digits from 0000 to 1023"),
        ("<loc0001><loc0002><loc0003><loc0004>", "object 1 has no label"),
        ("<loc0005><loc0002><loc0003><loc0004> cat", r"order is y1 x1 y2 x2"),
        ("<loc0001><loc0002><loc0001><loc0004> cat", "covers no area"),
        (ONE.replace(" ", "<seg001> "), "holds <seg> tokens"),
        (f"{ONE} ;", "object 2 is empty"),
        (f"{ONE};{ONE}", "spacing or separators differ"),
        (f"{ONE} {ONE}", "spacing or separators differ"),
        (f"{ONE} ", "spacing or separators differ"),
        (f"{ONE}, {ONE}", f"should be '{ONE} ; {ONE}'"),
        (f"{ONE} , {ONE}", f"should be '{ONE} ; {ONE}'"),
        (" ", "spacing or separators differ"),
    ],
)
def test_check_says_what_keeps_a_suffix_from_being_canonical(suffix, problem):
    assert problem in (box_text.check(suffix) or "")


def test_an_image_without_objects_may_be_trained_on():
    assert box_text.check("") is None


@pytest.mark.parametrize(
    ("box", "label", "message"),
    [
        ([0, 0, 1.1, 1], "cat", "0..1 of the image"),
        ([0, 0, float("nan"), 1], "cat", "0..1 of the image"),
        ([0.5, 0.5, 0.5001, 0.6], "cat", "covers no area"),
        ([0.6, 0, 0.5, 1], "cat", "order is y1 x1 y2 x2"),
        ([0, 0, 1, 1], "", "has no label"),
        ([0, 0, 1, 1], "cat ; dog", "does not read back"),
        ([0, 0, 1, 1], " cat", "does not read back"),
        ([0, 0, 1, 1], "cat<seg001>", "does not read back"),
        ([0, 0, 1, 1], "<loc0001>", "exactly four"),
    ],
)
def test_format_refuses_what_would_not_read_back(box, label, message):
    with pytest.raises(ValueError, match=message):
        box_text.format(box_text.Detections(np.array([box]), (label,)))


def test_format_refuses_boxes_without_labels():
    with pytest.raises(ValueError, match="1 boxes, but 0 labels"):
        box_text.format(box_text.Detections(np.array([[0, 0, 1, 1]]), ()))


@pytest.mark.parametrize(
    ("prefix", "classes"),
    [
        ("detect a ; b", ["a", "b"]),
        ("Detect left  hand;fracture ;\n", ["left hand", "fracture"]),
        ("detect", []),
        ("answer en what is this?", []),
        ("", []),
    ],
)
def test_a_prompt_names_its_classes(prefix, classes):
    assert box_text.prefix_classes(prefix) == classes


def test_confidence_is_the_boxs_probability_times_the_labels():
    half, quarter = np.log(0.5), np.log(0.25)
    box = [("<loc0001>", half), ("<loc0002>", half), ("<loc0003>", quarter), ("<loc0004>", quarter)]
    tokens = [
        *box,
        ("▁left", half),
        ("▁hand", 0.0),
        ("▁;", -9.0),  # separators do not count
        ("▁", -9.0),
        *[(piece, 0.0) for piece, _ in box],
        ("<seg001>", -9.0),
        ("▁caf", quarter),
        ("<0xC3>", quarter),
        ("<0xA9>", quarter),
    ]
    text = box_text.join_pieces(piece for piece, _ in tokens)
    assert box_text.parse(text).labels == ("left hand", "café")
    expected = [np.sqrt(0.5 * 0.25) * np.sqrt(0.5), 1.0 * 0.25]
    np.testing.assert_allclose(box_text.box_scores(tokens), expected, rtol=1e-6)


def test_dropped_objects_take_no_score():
    tokens = [("<loc0001>", -1.0), ("▁cat", -1.0), ("▁;", -1.0)]
    tokens += [(f"<loc000{digit}>", 0.0) for digit in range(4)] + [("▁dog", 0.0)]
    np.testing.assert_array_equal(box_text.box_scores(tokens), [1.0])


def test_a_token_without_text_takes_no_part_in_a_confidence():
    tokens = [("", -9.0), *[(f"<loc000{digit}>", 0.0) for digit in range(4)], (" dog", 0.0)]
    np.testing.assert_array_equal(box_text.box_scores(tokens), [1.0])


def test_short_texts_are_shown_whole():
    assert box_text.describe_difference("a,b", "a ; b").endswith("'a,b' should be 'a ; b'")


def test_long_texts_are_shown_from_shortly_before_they_differ():
    message = box_text.describe_difference("x" * 500 + "," + "y" * 500, "x" * 500 + ";" + "y" * 500)
    x, y = "x" * box_text.BEFORE, "y" * (box_text.MAX_SHOWN - box_text.BEFORE - 1)
    assert message.endswith(f"'...{x},{y}...' should be '...{x};{y}...'")


def test_a_comma_behind_a_label_was_meant_to_part_it_from_the_next_one():
    labels = ("cat,", "cat , ", "cat", "a, b", ",")
    assert [box_text.without_comma(label) for label in labels] == ["cat", "cat", "cat", "a, b", ","]

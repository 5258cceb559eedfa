import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma_jax.tasks import geometry, mask_text

LOCS = "<loc0100><loc0200><loc0500><loc0600>"
SEGS = "".join(f"<seg{code:03d}>" for code in range(16))


@st.composite
def segments(draw):
    """Objects whose boxes lie on bins, with labels that stay as they are."""
    count = draw(st.integers(0, 3))
    bins = st.tuples(st.integers(0, 1022), st.integers(1, 1023)).filter(
        lambda ends: ends[0] < ends[1]
    )
    boxes = []
    for _ in range(count):
        (y1, y2), (x1, x2) = draw(bins), draw(bins)
        boxes.append([y1 / 1023, x1 / 1023, y2 / 1023, x2 / 1023])
    code = st.lists(st.integers(0, 127), min_size=16, max_size=16)
    return mask_text.Segments(
        np.float32(boxes).reshape(-1, 4),
        np.int32([draw(code) for _ in range(count)]).reshape(-1, 16),
        tuple(draw(st.sampled_from(["", "cat", "a red bus"])) for _ in range(count)),
    )


@given(segments())
def test_parse_undoes_format(made):
    text = mask_text.format(made)
    assert mask_text.check(text) is None
    found = mask_text.parse(text)
    np.testing.assert_allclose(found.boxes_yxyx, made.boxes_yxyx, atol=1e-6)
    np.testing.assert_array_equal(found.codes, made.codes)
    assert found.labels == made.labels and not found.dropped
    assert mask_text.format(found) == text


PIECES = [
    "<loc0100>",
    "<loc0500>",
    "<loc9999>",
    "<seg001>",
    "<seg500>",
    "<seg1>",
    " ; ",
    "cat",
    "<s",
]


@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=60).map("".join)))
def test_parse_never_raises(text):
    found = mask_text.parse(text)
    assert len(found.codes) == len(found.boxes_yxyx) == len(found.labels) == len(found.places)


@pytest.mark.parametrize(
    ("text", "places", "dropped"),
    [
        (f"{LOCS}{SEGS} cat", [0], {}),
        (f"{LOCS}{SEGS}", [0], {}),
        (f"{LOCS} cat", [], {"no_seg": 1}),
        (f"{LOCS}{SEGS[:-8]} cat", [], {"seg_count": 1}),
        (f"{LOCS}{SEGS}{SEGS}{SEGS[:64]} cat", [0], {"extra_seg": 1}),
        (f"{LOCS}{SEGS} cat {SEGS}", [0], {"extra_seg": 1}),
        (f"{LOCS} cat {SEGS}", [], {"no_seg": 1}),
        (f"{LOCS}<seg128>{SEGS}", [], {"seg_range": 1}),
        (f"{LOCS}<loc0001>{SEGS}", [], {"loc_count": 1}),
        (f"<loc0500><loc0200><loc0100><loc0600>{SEGS}", [], {"inverted": 1}),
        (f"{SEGS} cat ; {LOCS}{SEGS} dog ;", [1], {"no_loc": 1, "empty": 1}),
        ("", [], {}),
    ],
)
def test_malformed_masks_are_counted_by_reason(text, places, dropped):
    found = mask_text.parse(text)
    assert list(found.places) == places
    assert found.dropped == dropped


@pytest.mark.parametrize(
    ("suffix", "problem"),
    [
        (f"{LOCS}{SEGS[:-8]} cat", "object 1 has fewer than 16 <seg> tokens"),
        (f"{LOCS}{SEGS} cat ; {LOCS} dog", "object 2 has no <seg> token"),
        (f"{LOCS}{SEGS}{SEGS}", "object 1 has more than 16 <seg> tokens"),
        (f"{LOCS} {SEGS} cat", "spacing or separators differ"),
        ("<loc1>", "object 1 does not have exactly four"),
    ],
)
def test_training_text_is_held_to_the_grammar(suffix, problem):
    assert mask_text.check(suffix).startswith(problem)


def test_a_comma_between_objects_is_shown_where_it_is_with_the_separator_in_its_place():
    message = mask_text.check(f"{LOCS}{SEGS} cat, {LOCS}{SEGS} dog") or ""
    found, meant = message.split("should be")
    assert "<seg015> cat, <loc0100>" in found and "<seg015> cat ; <loc0100>" in meant


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes_yxyx": np.float32([[0, 0, 2, 1]])}, "0..1"),
        ({"boxes_yxyx": np.float32([[0.5, 0, 0.5, 1]])}, "covers no area"),
        ({"codes": np.int32([[128] * 16])}, "000 to 127"),
        ({"codes": np.int32([[1] * 32])}, "1 boxes, 2 masks, 1 labels"),
        ({"labels": ("a ; b",)}, "does not read back"),
    ],
)
def test_objects_that_no_text_can_name_are_refused(changes, message):
    made = {
        "boxes_yxyx": np.float32([[0, 0, 1, 1]]),
        "codes": np.int32([[1] * 16]),
        "labels": ("cat",),
    }
    with pytest.raises(ValueError, match=message):
        mask_text.format(mask_text.Segments(**{**made, **changes}))


def test_masks_become_tokens_and_come_back():
    """A codec of one bit per cell of the 4x4 grid: exact for masks of whole cells."""

    def encode(cuts):
        return cuts.reshape(-1, 4, 16, 4, 16).mean(axis=(2, 4)).reshape(-1, 16) > 0.5

    def decode(codes):
        return np.kron(np.reshape(codes, (-1, 4, 4)), np.ones((1, 16, 16))) * 2.0 - 1

    image = np.zeros((2, 80, 120), bool)
    image[0, 8:40, 24:88], image[0, 8:24, 56:88] = True, False
    image[1, 40:72, 0:64] = True
    boxes = np.stack([geometry.find_box(mask) for mask in image])
    made = mask_text.encode(geometry.Regions(boxes, ("a", "b"), image), encode)
    assert made.codes.sum(axis=1).tolist() == [12, 16]
    back = mask_text.paste(made, decode, height=80, width=120)
    np.testing.assert_array_equal(back.masks, image)
    assert back.labels == ("a", "b")


def test_the_suffix_of_a_mask_equals_big_visions(reference_arrays):
    from paligemma_jax.models import mask_codec

    weights, cases = reference_arrays("seg_weights"), reference_arrays("seg_cases")
    mask = cases["mask2str/mask"] > 0
    regions = geometry.Regions(cases["mask2str/bbox"][None], ("",), mask[None])
    made = mask_text.encode(regions, lambda cuts: mask_codec.encode(weights, cuts))
    assert mask_text.format(made) == str(cases["mask2str/suffix"])


def test_confidence_is_the_mean_over_an_objects_tokens():
    pieces = ["<loc0100>", "<loc0200>", "<loc0500>", "<loc0600>"] + [
        f"<seg{i:03d}>" for i in range(16)
    ]
    tokens = [(piece, np.log(0.25)) for piece in pieces] + [("▁cat", np.log(0.5)), ("▁;", -9.0)]
    (score,) = mask_text.confidences(tokens)
    assert score == pytest.approx(np.exp((20 * np.log(0.25) + np.log(0.5)) / 21))
    assert mask_text.confidences(tokens[1:]).shape == (0,)

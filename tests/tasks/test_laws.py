"""The laws that every task of the table holds: reading and writing undo each other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma_jax.tasks import box_text, geometry, mask_text, task

LABELS = st.sampled_from(["cat", "a red bus", "höhle", "<b>"])
ENDS = st.tuples(st.integers(0, 500), st.integers(540, 1023))  # wide enough to cover a pixel
CODES = st.lists(st.integers(0, 127), min_size=16, max_size=16)
WORDS = st.text(max_size=30)


def fill(codes):
    """A mask codec whose masks fill their boxes."""
    return np.ones((len(codes), 64, 64))


def read(name, convention=geometry.DEFAULT_CONVENTION):
    return task.choose(name, task.Options(convention=convention, codec=fill))


def locs(y, x):
    return "".join(f"<loc{value:04d}>" for value in (y[0], x[0], y[1], x[1]))


def boxes_of(objects):
    ends = [(y[0] / 1023, x[0] / 1023, y[1] / 1023, x[1] / 1023) for y, x, *_ in objects]
    return np.array(ends, np.float32).reshape(-1, 4)


def segments_of(objects):
    codes = np.array([codes for _, _, codes, _ in objects], np.int32).reshape(-1, 16)
    return mask_text.Segments(boxes_of(objects), codes, tuple(label for *_, label in objects))


BOXES = st.lists(st.tuples(ENDS, ENDS, LABELS), max_size=4)
MASKS = st.lists(st.tuples(ENDS, ENDS, CODES, LABELS), max_size=3)
# Of each task of the table: canonical texts, and structures to write. A new task needs both.
CANONICAL = {
    "detection": BOXES.map(
        lambda objects: " ; ".join(f"{locs(y, x)} {label}" for y, x, label in objects)
    ),
    "segmentation": MASKS.map(
        lambda objects: " ; ".join(
            locs(y, x) + "".join(f"<seg{code:03d}>" for code in codes) + f" {label}"
            for y, x, codes, label in objects
        )
    ),
    **dict.fromkeys(
        ("vqa", "caption", "mixed"), WORDS.map(lambda text: " ".join(text.lower().split()))
    ),
    "json": st.dictionaries(st.sampled_from("abc"), st.integers(0, 9)).map(
        lambda counts: str(counts).replace("'", '"')
    ),
}
STRUCTURES = {
    "detection": BOXES.map(
        lambda objects: box_text.Detections(boxes_of(objects), tuple(o[2] for o in objects))
    ),
    "segmentation": MASKS.map(segments_of),
    **dict.fromkeys(("vqa", "caption", "json", "mixed"), WORDS),
}
# Text that nearly fits a task finds more than random letters would.
PIECES = (
    *("<loc0001>", "<loc0900>", "<loc1024>", "<loc12>", "<seg003>", "<seg500>", "<s", " ; ", ";"),
    *("cat", "{", "}", '"a"', ": 1", "[", "NaN", "\n", " ", "\ud800", "٣", "<seg007>" * 16),
)
ANY_TEXT = st.one_of(
    st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=25).map("".join)
)
EVERY = pytest.mark.parametrize("name", sorted(task.TASKS))


@EVERY
@given(data=st.data())
def test_format_undoes_parse_on_canonical_text(name, data):
    text = data.draw(CANONICAL[name])
    for convention in geometry.CONVENTIONS:
        assert read(name, convention).canonical(text) == text


@EVERY
@given(data=st.data())
def test_parse_undoes_format_within_half_a_bin_or_up_to_case_and_spaces(name, data):
    made, one = data.draw(STRUCTURES[name]), read(name)
    back = one.parse(one.format(made))
    if isinstance(made, str):
        assert back == one.parse(made)
        return
    assert back.labels == made.labels and not back.dropped
    np.testing.assert_allclose(back.boxes_yxyx, made.boxes_yxyx, atol=0.5 / 1023 + 1e-6)
    if isinstance(made, mask_text.Segments):
        np.testing.assert_array_equal(back.codes, made.codes)


@EVERY
@settings(max_examples=150)
@given(text=ANY_TEXT)
def test_any_text_of_a_model_can_be_read_labelled_drawn_and_scored(name, text):
    one = read(name)
    structure = one.parse(text)
    drawn = one.draw(structure)
    assert len(drawn.boxes_yxyx) == len(drawn.labels) >= len([*one.labels(structure)])
    assert one.canonical(one.canonical(text)) == one.canonical(text)
    row = one.score_example(text, suffix=None)
    assert row["score"] is None and row["correct"] is None
    assert one.aggregate([{"prefix": "", "prediction": text, **row}])


@EVERY
@given(data=st.data())
def test_the_truth_scores_one_against_itself(name, data):
    text, one = data.draw(CANONICAL[name]), read(name)
    if one.check(text) is None:
        row = one.score_example(text, suffix=text)
        assert (row["score"], row["correct"]) == (pytest.approx(1.0), True)


@EVERY
def test_a_task_says_its_own_name_and_every_field(name):
    one = read(name)
    assert one.name == name
    with pytest.raises(TypeError, match="missing"):
        task.Task(name=name)

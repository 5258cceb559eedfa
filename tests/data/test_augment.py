"""Augmentation: what is drawn, and what boxes become."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma_jax.data import augment, objects, records, warp
from paligemma_jax.tasks import box_text

CAT, DOG = "<loc0100><loc0200><loc0300><loc0400> cat", "<loc0700><loc0000><loc1023><loc0900> dog"
SIDE = 64
EVERYTHING = augment.Augmentation(
    flip_lr=0.5,
    flip_ud=0.5,
    crop=0.3,
    aspect=1.5,
    scale=(0.7, 1.5),
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
    jpeg_quality=60,
)


def record(suffix: str = f"{CAT} ; {DOG}", images=("a.png",), prefix="detect cat ; dog"):
    return records.Record(tuple(images), prefix, suffix, source="x.jsonl:1")


def augmenter(convention: str | None = "1023", seed: int = 0, **fields) -> augment.Augmenter:
    return augment.Augmenter(augment.Augmentation(**fields), seed, convention)


def seen(image: np.ndarray, draw: augment.Draw, chosen: augment.Augmentation) -> np.ndarray:
    return warp.apply_op(image, draw.to_array(), res=SIDE, settings=chosen).numpy()


@st.composite
def scenes(draw):
    """A white rectangle on black: (uint8[H, W, 3], its box yxyx in 0..1)."""
    height, width = draw(st.integers(40, 200)), draw(st.integers(40, 200))
    y1, x1 = draw(st.integers(0, height // 2)), draw(st.integers(0, width // 2))
    y2 = draw(st.integers(y1 + height // 4, height))
    x2 = draw(st.integers(x1 + width // 4, width))
    image = np.zeros((height, width, 3), np.uint8)
    image[y1:y2, x1:x2] = 255
    return image, np.array([y1, x1, y2, x2]) / [height, width, height, width]


@settings(deadline=None, max_examples=20)
@given(scene=scenes(), position=st.integers(0, 10**6))
def test_a_drawn_object_stays_on_its_pixels_through_any_chain(scene, position):
    image, box = scene
    text = box_text.format(box_text.Detections(box[None], ("cat",)))
    one = augment.Augmenter(EVERYTHING, 0, "1023")
    drawn = one.draw(record(text), position)
    (expected,) = box_text.parse(one.answer(record(text), position)).boxes_yxyx * SIDE
    pixels = seen(image, drawn, EVERYTHING)[..., 1]
    is_object = pixels > pixels.max() / 2
    ys, xs = (np.flatnonzero(is_object.any(axis=axis)) for axis in (1, 0))
    found = [ys[0], xs[0], ys[-1] + 1, xs[-1] + 1]
    np.testing.assert_allclose(found, expected, atol=1.5)


def test_nothing_changes_where_nothing_is_asked_for():
    off = augmenter()
    assert off.draw(record(), 7) == augment.Draw()
    assert off.answer(record(), 7) == record().suffix
    assert not off.settings.changes_pixels
    assert off.settings.describe() == "none"


def test_a_draw_is_a_function_of_seed_and_position():
    one, again, other = (augment.Augmenter(EVERYTHING, seed, "1023") for seed in (1, 1, 2))
    assert one.draw(record(), 5) == again.draw(record(), 5)
    assert one.answer(record(), 5) == again.answer(record(), 5)
    assert one.draw(record(), 5) != one.draw(record(), 6)
    assert one.draw(record(), 5) != other.draw(record(), 5)


def test_draws_are_fixed_for_good():
    # A resumed run relies on it: these numbers may never change.
    drawn = augment.Augmenter(EVERYTHING, 0, "1023").draw(record(), 0)
    np.testing.assert_allclose(drawn.window_yxyx, [0.0602, 0.1213, 0.6003, 0.7928], atol=1e-4)
    assert (drawn.flip_ud, drawn.flip_lr, drawn.jpeg_quality) == (False, False, 77)
    np.testing.assert_allclose(drawn.to_array()[6:9], [0.8366, 1.1981, 1.0596], atol=1e-4)


def test_one_change_does_not_depend_on_another():
    flips = [augmenter(flip_lr=0.5).draw(record(), i).flip_lr for i in range(20)]
    more = augmenter(flip_lr=0.5, flip_ud=0.5, crop=0.5, brightness=0.5)
    assert [more.draw(record(), i).flip_lr for i in range(20)] == flips
    assert 4 < sum(flips) < 16


def test_a_box_is_clipped_flipped_and_written_once():
    left = augment.Draw(window_yxyx=(0.0, 0.0, 1.0, 0.5), flip_lr=True)
    moved = left.move(np.array([[0.1, 0.2, 0.3, 0.8]]))
    np.testing.assert_allclose(moved, [[0.1, -0.6, 0.3, 0.6]])


@pytest.mark.parametrize(("min_visible", "kept"), [(0.0, 2), (0.49, 2), (0.51, 1), (0.9, 1)])
def test_a_box_stays_if_enough_of_it_is_visible(min_visible, kept, monkeypatch):
    # Half of the first box is inside, all of the second, nothing of the third.
    boxes = [[0.4, 0.1, 0.6, 0.3], [0.0, 0.0, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9]]
    text = box_text.format(box_text.Detections(np.array(boxes), ("half", "all", "none")))
    one = augmenter(crop=0.5, min_visible=min_visible)
    monkeypatch.setattr(augment, "_choose_window", lambda *_: (0.0, 0.0, 0.5, 1.0))
    answer = box_text.parse(one.answer(record(text), 0))
    assert answer.labels == ("half", "all")[2 - kept :]
    np.testing.assert_allclose(answer.boxes_yxyx[-1], [0, 0, 1, 0.5], atol=1e-3)
    if kept == 2:
        np.testing.assert_allclose(answer.boxes_yxyx[0], [0.8, 0.1, 1, 0.3], atol=1e-3)


def test_what_is_too_thin_for_bins_leaves_the_answer(monkeypatch):
    # 1023 bins of the image are 100 of a window ten times as large: 4 of them vanish.
    thin = "<loc0100><loc0100><loc0104><loc0900> cat"
    monkeypatch.setattr(augment, "_choose_window", lambda *_: (0.0, 0.0, 10.0, 1.0))
    one = augmenter(scale=(0.1, 0.1), min_visible=0.0)
    assert one.answer(record(f"{thin} ; {DOG}"), 0).endswith(" dog")
    assert ";" not in one.answer(record(f"{thin} ; {DOG}"), 0)


def test_no_answer_becomes_empty():
    small = record("<loc0000><loc0000><loc0030><loc0030> cat")
    one = augmenter(crop=0.05, min_visible=0.5)
    draws = [one.draw(small, i) for i in range(200)]
    assert all(one.answer(small, i) for i in range(200))
    # What ten tries do not show is shown with the whole image.
    assert 0 < sum(draw.window_yxyx == augment.WHOLE for draw in draws) < 200


def test_an_image_without_objects_is_cropped_all_the_same():
    one = augmenter(crop=0.5)
    assert one.draw(record(""), 0).window_yxyx != augment.WHOLE
    assert one.answer(record(""), 0) == ""


def test_objects_are_shuffled_and_nothing_else():
    one, three = augmenter(shuffle_objects=True), f"{CAT} ; {DOG} ; {CAT.replace('cat', 'bird')}"
    answers = [one.answer(record(three), i) for i in range(30)]
    assert {tuple(sorted(answer.split(" ; "))) for answer in answers} == {
        tuple(sorted(three.split(" ; ")))
    }
    assert len(set(answers)) == 6
    assert one.draw(record(three), 0) == augment.Draw()


def test_a_users_own_eos_is_no_label():
    assert augmenter(flip_lr=1.0).answer(record(f"{CAT}<eos>"), 0) == (
        "<loc0100><loc0623><loc0300><loc0823> cat"
    )


def test_text_is_left_alone_where_answers_are_not_boxes():
    one = augmenter(None, flip_lr=1.0, crop=0.5)
    assert one.answer(record("a cat to the left", prefix="caption en"), 3) == "a cat to the left"


OBJECTS = objects.make(100, 200, ("cat",), [[10.5, 20, 30, 50.5]])


def test_boxes_of_a_rows_objects_are_exact_and_come_first():
    suffix = box_text.format(objects.to_detections(OBJECTS))
    kept = dataclasses.replace(record(suffix), objects=OBJECTS)
    one = augmenter(scale=(4, 4), min_visible=0.9)
    draws = (one.draw(kept, i) for i in range(30))
    position = next(i for i, draw in enumerate(draws) if draw.window_yxyx != augment.WHOLE)
    y1, x1, _, _ = one.draw(kept, position).window_yxyx
    expected = (np.array([0.1, 0.105, 0.2525, 0.3]) - [y1, x1, y1, x1]) * 4
    (box,) = box_text.parse(one.answer(kept, position)).boxes_yxyx
    np.testing.assert_allclose(box, np.clip(expected, 0, 1), atol=0.5001 / 1023)


@pytest.mark.parametrize(
    ("convention", "changes", "reason"),
    [
        ("1023", dict(images=("a.png", "b.png")), "x.jsonl:1: 2 images.*: leave out flips"),
        ("1023", dict(prefix="caption <loc0000>"), "x.jsonl:1: <loc> or <seg> tokens"),
        ("1023", dict(objects=OBJECTS), r"objects \('cat',\) are not those of the suffix"),
        (None, dict(suffix=f"<seg000> {CAT}"), "x.jsonl:1: <loc> or <seg> tokens"),
        (None, dict(suffix="1 cat", objects=OBJECTS), "only the task 'detection' writes anew"),
    ],
)
def test_what_cannot_follow_its_image_is_an_error(convention, changes, reason):
    chosen = dataclasses.replace(record(), **changes)
    with pytest.raises(ValueError, match=reason):
        augmenter(convention, flip_lr=0.5).check([record("", prefix=""), chosen])
    augmenter(convention, brightness=0.5, jpeg_quality=50).check([chosen])


def test_only_boxes_can_be_shuffled():
    with pytest.raises(ValueError, match="shuffle_objects: answers of this task are no boxes"):
        augmenter(None, shuffle_objects=True).check([])


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (dict(flip_lr=1.5), "augment.flip_lr=1.5: expected 0 to 1"),
        (dict(crop=0.0), "augment.crop=0.0: expected 0.01 to 1"),
        (dict(aspect=0.5), "augment.aspect=0.5: expected 1 to 10"),
        (dict(brightness=float("nan")), "augment.brightness=nan"),
        (dict(jpeg_quality=0), "augment.jpeg_quality=0: expected 1 to 100"),
        (dict(scale=(2, 0.5)), r"augment.scale=\(2, 0.5\): expected \(least, most\)"),
        (dict(scale=(0.5, 50)), r"augment.scale=\(0.5, 50\): expected 0.1 to 10"),
        (dict(scale=(1,)), "expected .least, most"),
    ],
)
def test_a_setting_out_of_range_is_named(fields, reason):
    with pytest.raises(ValueError, match=reason):
        augment.Augmentation(**fields)


def test_settings_describe_what_is_on():
    chosen = dataclasses.replace(augment.Augmentation(), flip_lr=0.5, scale=[0.5, 2])
    assert chosen.describe() == "flip_lr 0.5, scale [0.5, 2]"

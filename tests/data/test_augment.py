"""Augmentation: what is drawn, and what boxes become."""

import dataclasses

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma_jax.data import augment, images, objects, pipeline, records, tokens
from paligemma_jax.settings import schema
from paligemma_jax.tasks import box_text

CAT, DOG = "<loc0100><loc0200><loc0300><loc0400> cat", "<loc0700><loc0000><loc1023><loc0900> dog"


def augmentation(**fields) -> augment.Augmentation:
    return augment.Augmentation(**dataclasses.asdict(schema.AugmentSettings(**fields)))


SIDE = 64
EVERYTHING = augmentation(
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
    return augment.Augmenter(augmentation(**fields), seed, convention)


def seen(image: np.ndarray, draw: augment.Draw, chosen: augment.Augmentation) -> np.ndarray:
    return augment.apply_op(image, draw.to_array(), res=SIDE, settings=chosen).numpy()


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
        augmentation(**fields)


RES = 48
ALL = augmentation(flip_lr=0.5, flip_ud=0.5, crop=0.5, brightness=0.5, contrast=0.5, saturation=0.5)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 61, 3), dtype=np.uint8)


def apply(image, draw=None, chosen=ALL, **fields) -> np.ndarray:
    draw = draw or augment.Draw(**fields)
    return augment.apply_op(image, draw.to_array(), res=RES, settings=chosen).numpy()


@pytest.mark.parametrize("size", [(90, 61), (48, 48), (20, 31), (1, 300)])
def test_a_draw_that_changes_nothing_gives_the_bits_of_no_augmentation(size):
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = images.resize(pixels, res=RES)
    np.testing.assert_array_equal(apply(pixels), expected)
    np.testing.assert_array_equal(apply(pixels, chosen=augmentation()), expected)


def test_flips_reverse_the_resized_image(image):
    plain = images.resize(image, res=RES)
    np.testing.assert_array_equal(apply(image, flip_lr=True), plain[:, ::-1])
    np.testing.assert_array_equal(apply(image, flip_ud=True), plain[::-1])


def test_a_window_is_what_a_cut_and_a_resize_give(image):
    window = (30 / 90, 0.0, 60 / 90, 1.0)
    expected = images.resize(image[30:60], res=RES).astype(int)
    found = apply(image, window_yxyx=window).astype(int)
    # At the cut's own edges a window also sees its neighbours.
    assert np.abs(found - expected)[1:-1].max() <= 1


def test_what_lies_outside_of_the_image_is_black(image):
    found = apply(np.maximum(image, 50), window_yxyx=(-0.5, -0.5, 1.5, 1.5))
    is_inside = np.zeros((RES, RES), bool)
    is_inside[RES // 4 : -RES // 4, RES // 4 : -RES // 4] = True
    assert (found[is_inside] >= 50).all() and not found[~is_inside].any()


def test_colour_factors_do_what_they_say(image):
    plain = images.resize(image, res=RES).astype(float)
    darker = apply(image, brightness=0.5).astype(float)
    np.testing.assert_allclose(darker, plain / 2, atol=0.51)
    gray = apply(image, saturation=0.0)
    assert np.ptp(gray, axis=-1).max() == 0
    flat = apply(image, contrast=0.0)
    assert np.ptp(flat) == 0 and abs(flat.mean() - gray.mean()) < 2
    assert apply(image, brightness=1.5).max() == 255


def test_a_lower_jpeg_quality_changes_more(image):
    chosen = augmentation(jpeg_quality=10)
    plain = images.resize(image, res=RES).astype(int)
    errors = [
        np.abs(apply(image, chosen=chosen, jpeg_quality=quality) - plain).mean()
        for quality in (10, 50, 100)
    ]
    assert errors[0] > errors[1] > errors[2] > 0


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[list[records.Record], tokens.Tokenizer]:
    """Eight white rectangles on black with their boxes as text, and a tokenizer."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    found = []
    for i in range(8):
        pixels = np.zeros((80, 100, 3), np.uint8)
        y, x = rng.integers(0, 40, 2)
        pixels[y : y + 30, x : x + 40] = 255
        PIL.Image.fromarray(pixels).save(folder / f"{i}.png")
        box = np.array([[y / 80, x / 100, (y + 30) / 80, (x + 40) / 100]])
        text = box_text.format(box_text.Detections(box, ("cat",)))
        found.append(records.Record((str(folder / f"{i}.png"),), "detect cat", text, f"x:{i + 1}"))
    tokenizer = tokens.train_tokenizer(["detect cat", " cat"], folder / "t.model", vocab_size=1500)
    return found, tokenizer


def batches(data, augmentation, *, seed=0, start_step=0, **spec):
    fields = dict(res=RES, text_len=24, batch_size=4)
    return list(
        pipeline.train_batches(
            data[0],
            data[1],
            pipeline.BatchSpec(**{**fields, **spec}),
            seed=seed,
            total_steps=6,
            start_step=start_step,
            augmentation=augmentation,
        )
    )


def assert_equal(batch, other):
    assert batch.keys() == other.keys()
    for key in batch:
        np.testing.assert_array_equal(batch[key], other[key], err_msg=key)


MOVES = augmentation(flip_lr=0.5, flip_ud=0.5, crop=0.4, scale=(0.8, 1.2), brightness=0.2)


def test_batches_hold_images_and_answers_that_belong_together(data):
    tokenizer = data[1]
    for batch in batches(data, augment.Augmenter(MOVES, 0, "1023")):
        for row in range(4):
            text = tokenizer.decode(batch["text"][row][batch["mask_loss"][row]])
            (expected,) = box_text.parse(text).boxes_yxyx * RES
            pixels = batch["image"][row, 0, ..., 0]
            is_object = pixels > pixels.max() / 2
            ys, xs = (np.flatnonzero(is_object.any(axis=axis)) for axis in (1, 0))
            found = [ys[0], xs[0], ys[-1] + 1, xs[-1] + 1]
            np.testing.assert_allclose(found, expected, atol=1.5)


def test_augmented_training_resumes_with_the_same_batches(data):
    augmentation = augment.Augmenter(MOVES, 0, "1023")
    straight, resumed = batches(data, augmentation), batches(data, augmentation, start_step=4)
    for batch, other in zip(straight[4:], resumed, strict=True):
        assert_equal(batch, other)
    # The second pass over the data shows it in another way.
    shown = np.concatenate([batch["image"] for batch in straight])
    assert len({image.tobytes() for image in shown}) == len(shown)


def test_processes_share_augmented_batches(data):
    augmentation = augment.Augmenter(MOVES, 0, "1023")
    parts = [batches(data, augmentation, process_index=i, process_count=2) for i in range(2)]
    for batch, *shares in zip(batches(data, augmentation), *parts, strict=True):
        assert_equal({k: np.concatenate([share[k] for share in shares]) for k in batch}, batch)


def test_augmentation_that_is_off_gives_the_same_batches(data):
    off = augment.Augmenter(augmentation(), 0, "1023")
    for batch, other in zip(batches(data, off), batches(data, None), strict=True):
        assert_equal(batch, other)

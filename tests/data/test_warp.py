"""Pixels follow a draw, and are the usual ones where a draw changes nothing."""

import numpy as np
import PIL.Image
import pytest

from paligemma_jax.data import augment, images, pipeline, records, tokens, warp
from paligemma_jax.tasks import box_text

RES = 48
ALL = augment.Augmentation(
    flip_lr=0.5, flip_ud=0.5, crop=0.5, brightness=0.5, contrast=0.5, saturation=0.5
)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 61, 3), dtype=np.uint8)


def apply(image, draw=None, chosen=ALL, **fields) -> np.ndarray:
    draw = draw or augment.Draw(**fields)
    return warp.apply_op(image, draw.to_array(), res=RES, settings=chosen).numpy()


@pytest.mark.parametrize("size", [(90, 61), (48, 48), (20, 31), (1, 300)])
def test_a_draw_that_changes_nothing_gives_the_bits_of_no_augmentation(size):
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = images.resize(pixels, res=RES)
    np.testing.assert_array_equal(apply(pixels), expected)
    np.testing.assert_array_equal(apply(pixels, chosen=augment.Augmentation()), expected)


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
    chosen = augment.Augmentation(jpeg_quality=10)
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


MOVES = augment.Augmentation(flip_lr=0.5, flip_ud=0.5, crop=0.4, scale=(0.8, 1.2), brightness=0.2)


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
    off = augment.Augmenter(augment.Augmentation(), 0, "1023")
    for batch, other in zip(batches(data, off), batches(data, None), strict=True):
        assert_equal(batch, other)

"""An example is explained by the row that training makes of it."""

import pathlib

import numpy as np
import pytest
from PIL import Image, ImageColor

from paligemma_jax.checks import shown_examples
from paligemma_jax.data import prefix_lm, records, tokens
from paligemma_jax.reports import drawing, sheets
from paligemma_jax.settings import load

REFERENCE = pathlib.Path(__file__).parents[1] / "reference"


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.load_tokenizer(REFERENCE / "tiny_spm.model")


def explain_row(tokenizer, record, text_len):
    return shown_examples.explain(
        record, tokenizer, text_len=text_len, lowercase=False, num_image_tokens=4
    )


def test_a_worked_example(tokenizer):
    record = records.Record(("a.png",), "a", "b", source="x:1")
    found = explain_row(tokenizer, record, text_len=6)
    (a,), (b,) = tokenizer.encode("a"), tokenizer.encode("b")
    table = [
        (
            t.part,
            t.token_id,
            int(t.mask_ar),
            int(t.mask_loss),
            int(t.mask_input),
            t.position,
            t.count,
        )
        for t in found
    ]
    assert table == [
        ("image", None, 0, 0, 1, 0, 4),
        ("prefix", tokenizer.bos, 0, 0, 1, 4, 1),
        ("prefix", a, 0, 0, 1, 5, 1),
        ("prefix", tokenizer.newline, 0, 0, 1, 6, 1),
        ("suffix", b, 1, 1, 1, 7, 1),
        ("suffix", tokenizer.eos, 1, 1, 1, 8, 1),
        ("padding", tokenizer.pad, 1, 0, 0, None, 2),
    ]
    assert found[3].piece == "\n"
    assert shown_examples.answer(found, tokenizer) == "b"


def test_tokens_and_masks_are_those_of_the_training_row(tokenizer):
    record = records.Record((), "detect cat", "<loc0010><loc0020><loc1023><loc0512> cat")
    found = explain_row(tokenizer, record, text_len=32)
    row = prefix_lm.encode_training(tokenizer, record.prefix, record.suffix, text_len=32)
    for name in ("mask_ar", "mask_loss", "mask_input"):
        assert [getattr(t, name) for t in found for _ in range(t.count)] == row[name].tolist()
    assert [t.token_id for t in found for _ in range(t.count)] == row["text"].tolist()


def test_two_images_take_two_stretches_of_positions(tokenizer):
    record = records.Record(("a.png", "b.png"), "a", "b")
    found = explain_row(tokenizer, record, text_len=6)
    assert [(t.position, t.count) for t in found[:3]] == [(0, 4), (4, 4), (8, 1)]


def test_a_text_that_does_not_fit_is_shown_as_it_would_be_cut(tokenizer):
    record = records.Record((), "a", "b b b b")
    found = explain_row(tokenizer, record, text_len=4)
    assert tokenizer.eos not in [t.token_id for t in found]
    assert sum(t.count for t in found) == 5


def test_a_sheet_has_a_row_per_example_and_the_plain_picture_first(config, tmp_path):
    config.input.augment.update(flip_lr=0.5, crop=0.5, jpeg_quality=50)
    shown_examples.write_augment_sheet(load.typed(config), tmp_path / "sheet.png", changes=3)
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    width, height = (
        sheets.ROW_SIDE + sheets.ROW_GAP,
        sheets.ROW_SIDE + sheets.TITLE + sheets.ROW_GAP,
    )
    assert pixels.shape == (2 * height + sheets.ROW_GAP, 4 * width + sheets.ROW_GAP, 3)
    # The images are black; the box of the answer is drawn into every picture.
    color = ImageColor.getrgb(drawing.choose_colors(["cat"])["cat"])
    for row in range(2):
        for column in range(4):
            y, x = (
                sheets.ROW_GAP + row * height + sheets.TITLE,
                sheets.ROW_GAP + column * width,
            )
            picture = pixels[y : y + sheets.ROW_SIDE, x : x + sheets.ROW_SIDE]
            assert (picture == 0).all(axis=-1).any() and (picture == color).all(-1).any()


def test_there_is_no_sheet_of_nothing(config, tmp_path):
    with pytest.raises(ValueError, match=r"no augmentation is on: set keys under input.augment"):
        shown_examples.write_augment_sheet(load.typed(config), tmp_path / "sheet.png")

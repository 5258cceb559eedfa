"""The sheet that shows what a config's augmentation does."""

import numpy as np
import pytest
from PIL import Image

from paligemma_jax.checks import augment_sheet
from paligemma_jax.reports import sheets
from paligemma_jax.settings import load


def test_a_sheet_has_a_row_per_example_and_the_plain_picture_first(config, tmp_path):
    config.input.augment.update(flip_lr=0.5, crop=0.5, jpeg_quality=50)
    augment_sheet.write(load.typed(config), tmp_path / "sheet.png", changes=3)
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    width, height = (
        sheets.ROW_SIDE + sheets.ROW_GAP,
        sheets.ROW_SIDE + sheets.TITLE + sheets.ROW_GAP,
    )
    assert pixels.shape == (2 * height + sheets.ROW_GAP, 4 * width + sheets.ROW_GAP, 3)
    # The images are black; the box of the answer is drawn into every picture.
    for row in range(2):
        for column in range(4):
            y, x = (
                sheets.ROW_GAP + row * height + sheets.TITLE,
                sheets.ROW_GAP + column * width,
            )
            picture = pixels[y : y + sheets.ROW_SIDE, x : x + sheets.ROW_SIDE]
            assert (picture == 0).all(axis=-1).any() and (picture == [214, 39, 40]).all(-1).any()


def test_there_is_no_sheet_of_nothing(config, tmp_path):
    with pytest.raises(ValueError, match=r"no augmentation is on: set keys under input.augment"):
        augment_sheet.write(load.typed(config), tmp_path / "sheet.png")

"""A sheet of pictures: boxes, tints and texts where they belong."""

import numpy as np
from PIL import Image

from paligemma_jax.reports import drawing, sheets


def cell(tmp_path, name="a.png", **changes):
    path = tmp_path / name
    Image.fromarray(np.full((60, 120, 3), 90, np.uint8)).save(path)
    fields = {"prompt": "detect cat", "answer": "", "boxes_yxyx": np.zeros((0, 4))}
    return sheets.Cell(str(path), **(fields | changes))


def draw(tmp_path, *cells):
    sheets.write_contact_sheet(tmp_path / "sheet.png", cells)
    return np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)


def rgb(color):
    return [int(color[i : i + 2], 16) for i in (1, 3, 5)]


def test_a_box_and_a_mask_are_drawn_where_they_are(tmp_path):
    mask = np.zeros((60, 120), bool)
    mask[30:, 60:] = True
    box = np.array([[0.5, 0.5, 1, 1]])
    pixels = draw(tmp_path, cell(tmp_path, boxes_yxyx=box, labels=("cat",), masks=(mask,)))
    color = np.array(rgb(drawing.choose_colors(["cat"])["cat"]))
    gap, side = sheets.GAP, sheets.SIDE
    assert pixels[gap + 20, gap + 20].tolist() == [90] * 3
    assert pixels[gap + side // 2 - 1, gap + side - 1].tolist() == color.tolist()
    inside = pixels[gap + 110, gap + 225]
    expected = 90 + sheets.TINT * (color - 90)
    np.testing.assert_allclose(inside, expected, atol=2)


def test_the_sheet_grows_with_the_pictures(tmp_path):
    one = draw(tmp_path, cell(tmp_path))
    many = draw(tmp_path, *[cell(tmp_path)] * (sheets.COLUMNS + 1))
    assert many.shape[0] > 1.9 * one.shape[0] - sheets.GAP
    assert many.shape[1] > (sheets.COLUMNS - 0.5) * one.shape[1]


def test_texts_are_below_the_picture(tmp_path):
    with_text, without = (
        draw(tmp_path, cell(tmp_path, prompt=prompt)) for prompt in ("detect cat", "")
    )
    rows = np.flatnonzero((with_text != without).any(axis=(1, 2)))
    assert rows.min() >= sheets.GAP + sheets.SIDE // 2


def test_a_picture_that_cannot_be_read_leaves_the_others(tmp_path):
    bad = cell(tmp_path, "bad.png")
    (tmp_path / "bad.png").write_text("no picture")
    pixels = draw(tmp_path, bad, cell(tmp_path))
    gap, width = sheets.GAP, sheets.SIDE + sheets.GAP
    assert pixels[gap + 50, gap + width + 50].tolist() == [90] * 3
    assert pixels[gap + 100, gap + 50].tolist() == rgb(sheets.BACKGROUND)

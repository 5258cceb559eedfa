import base64
import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from paligemma_jax.reports import drawing

GREY = np.full((100, 200, 3), 128, np.uint8)


def test_a_box_is_drawn_where_it_is_yxyx():
    picture = drawing.draw_boxes(GREY, [[0.5, 0.25, 0.9, 0.75]], ["cat"], colors={"cat": "#ff0000"})
    pixels = np.asarray(picture)
    assert picture.size == (200, 100)
    for y, x in ((50, 100), (89, 100), (70, 50), (70, 149)):  # a point of each edge
        assert pixels[y, x].tolist() == [255, 0, 0]
    assert pixels[70, 100].tolist() == [128, 128, 128]
    assert pixels[25, 100].tolist() == [128, 128, 128]
    assert np.all(GREY == 128)  # the input stays as it is


def test_a_tag_stays_inside_the_picture():
    pixels = np.asarray(drawing.draw_boxes(GREY, [[0, 0, 1, 1]], ["cat"], [0.5]))
    cat = drawing.choose_colors(["cat"])["cat"]
    color = [int(cat[at : at + 2], 16) for at in (1, 3, 5)]
    assert (pixels[2:12, 2:20] == color).all(axis=-1).any()


def test_labels_of_a_small_picture_leave_most_of_it_to_see():
    changed = []
    for side in (64, 640):
        plain = np.full((side, side, 3), 128, np.uint8)
        drawn = drawing.draw_boxes(plain, [[0.5, 0.5, 0.5, 0.5]], ["cat"], [0.5])
        changed.append((np.asarray(drawn) != plain).any(axis=-1))
    rows = [np.flatnonzero(one.any(axis=1)).size for one in changed]
    assert rows[0] <= 12 and changed[0].mean() < 0.15  # it took 17 rows
    assert rows[1] > rows[0]


def test_no_boxes_leave_the_picture_alone():
    np.testing.assert_array_equal(np.asarray(drawing.draw_boxes(GREY, [], [], [])), GREY)


def test_a_mask_tints_its_pixels_inside_the_box():
    bits = np.zeros((64, 64), bool)
    bits[:, :32] = True
    mask = base64.b64encode(np.packbits(bits).tobytes()).decode()
    box, red = [[0.2, 0.2, 0.8, 0.8]], {"cat": "#ff0000"}
    pixels = np.asarray(drawing.draw_boxes(GREY, box, ["cat"], masks=[mask], colors=red))
    assert pixels[50, 70].tolist() == [185, 70, 70]  # 45% of red
    assert pixels[50, 130].tolist() == [128, 128, 128]
    with Image.open(io.BytesIO(drawing.mask_png(mask, "#ff0000"))) as png:
        assert png.size == (64, 64)
        assert png.getpixel((3, 9)) == (255, 0, 0, 115) and png.getpixel((40, 9))[3] == 0


def test_labels_and_scores_must_be_as_many_as_boxes():
    with pytest.raises(ValueError, match=r"1 boxes need as many labels, .*; found \{'labels': 0\}"):
        drawing.draw_boxes(GREY, [[0, 0, 1, 1]], [])
    with pytest.raises(ValueError, match=r"found \{'labels': 1, 'scores': 2\}"):
        drawing.draw_boxes(GREY, [[0, 0, 1, 1]], ["cat"], [1.0, 0.5])


def test_a_label_keeps_its_colour_among_others_unless_it_is_taken():
    alone = {label: drawing.choose_colors([label])[label] for label in ("cat", "dog", "car")}
    assert len(set(alone.values())) == 3
    assert drawing.choose_colors(alone) == alone
    many = [f"class {number}" for number in range(30)]
    counts = Counter(drawing.choose_colors(many).values())
    assert set(counts) == set(drawing.COLORS) and max(counts.values()) == 3


def test_colors_belong_to_the_set_of_labels():
    assert drawing.choose_colors(["b", "a", "b"]) == drawing.choose_colors(["a", "b"])
    assert len(set(drawing.choose_colors("abcdefghijkl").values())) == 12


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    deep = np.array([[0, 128 << 8, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    pixels = np.asarray(drawing.open_rgb(tmp_path / "deep.png"))
    assert pixels[0, :, 0].tolist() == [0, 128, 255] and pixels.shape == (1, 3, 3)


def test_an_enlarged_picture_shows_every_pixel_as_a_square():
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    picture = np.asarray(drawing.enlarge(pixels, at_least=5))
    assert picture.shape == (6, 9, 3)
    np.testing.assert_array_equal(picture[::3, ::3], pixels)
    np.testing.assert_array_equal(picture[2::3, 2::3], pixels)


def test_pictures_stand_side_by_side_as_high_as_the_first():
    whole = drawing.beside([Image.new("RGB", (30, 20), "red"), np.zeros((40, 20, 3), np.uint8)])
    assert whole.size == (40, 20)
    assert whole.getpixel((0, 0)) == (255, 0, 0) and whole.getpixel((35, 10)) == (0, 0, 0)


def test_a_caption_takes_the_lines_that_it_needs_or_just_so_many():
    picture = Image.new("RGB", (120, 60))
    words = "some words of an answer that is too long for a line"
    short, long = (drawing.add_caption(picture, text).height for text in ("word", words))
    assert 60 < short < long
    fixed = [drawing.add_caption(picture, text, num_lines=2).height for text in ("", words)]
    assert fixed[0] == fixed[1]
    assert np.asarray(drawing.add_caption(picture, "word"))[60:].min() < 100

import numpy as np
import pytest
from PIL import Image

from paligemma_jax.tasks import masks


@pytest.mark.parametrize("size", [(64, 64), (200, 31), (3, 90)])
def test_resizing_equals_pillows_bilinear(size):
    image = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)
    height, width = size
    expected = Image.fromarray(image).resize((width, height), resample=Image.Resampling.BILINEAR)
    np.testing.assert_allclose(masks.resize(image, height, width), np.asarray(expected), atol=1e-5)


def test_a_pasted_cut_is_the_mask_again():
    mask = np.zeros((100, 150), bool)
    mask[20:84, 30:94] = np.tri(64, dtype=bool)
    box = masks.find_box(mask)
    np.testing.assert_allclose(box, [0.2, 0.2, 0.84, 94 / 150], rtol=1e-6)
    cut = masks.cut(mask, box)
    np.testing.assert_array_equal(cut, np.tri(64))
    np.testing.assert_array_equal(masks.paste(2 * cut - 1, box, 100, 150), mask)


@pytest.mark.parametrize("side", [64, 100, 337, 1080])
def test_a_bin_that_names_a_pixel_ends_at_it(side):
    bins = np.arange(1024)
    boxes = np.float32(np.stack([0 * bins, 0 * bins, bins, bins], axis=1)) / np.float32(1023)
    ends = [masks.fit(np.ones((64, 64)), box, side, side)[1].shape[0] for box in boxes]
    assert ends == (bins * side // 1023).tolist()


def test_masks_without_a_pixel_have_no_box_and_cannot_be_cut():
    assert masks.find_box(np.zeros((4, 5), bool)) is None
    with pytest.raises(ValueError, match="covers no pixel of 5x4"):
        masks.cut(np.ones((4, 5), bool), np.float32([0.1, 0.5, 0.1, 0.9]))
    pixels, inside = masks.fit(np.ones((64, 64)), np.float32([0, 0, 0.001, 0.001]), 90, 90)
    assert pixels == (0, 0, 0, 0) and inside.size == 0


def test_packed_masks_are_read_back():
    mask = np.random.default_rng(0).random((64, 64)) < 0.5
    assert len(masks.pack(mask)) == 684
    np.testing.assert_array_equal(masks.unpack(masks.pack(mask)), mask)

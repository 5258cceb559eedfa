import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from paligemma_jax.tasks import geometry


def test_order_is_kept_and_1023_reaches_both_edges():
    box = np.array([[0.0, 0.25, 0.5, 1.0]], np.float32)  # y1 x1 y2 x2
    bins = geometry.to_bins(box)
    np.testing.assert_array_equal(bins, [[0, 256, 512, 1023]])
    assert bins.dtype == np.int32
    np.testing.assert_allclose(
        geometry.from_bins(bins), [[0.0, 256 / 1023, 512 / 1023, 1.0]], atol=1e-7
    )


def test_1024_reads_the_far_edge_one_bin_short():
    box = np.array([[0.0, 0.25, 0.5, 1.0]], np.float32)
    bins = geometry.to_bins(box, convention="1024")
    np.testing.assert_array_equal(bins, [[0, 256, 512, 1023]])
    np.testing.assert_array_equal(
        geometry.from_bins(bins, convention="1024"), np.float32([[0, 0.25, 0.5, 1023 / 1024]])
    )


@pytest.mark.parametrize("convention", sorted(geometry.CONVENTIONS))
def test_every_bin_is_its_own_nearest(convention):
    bins = np.repeat(np.arange(geometry.NUM_BINS), 4).reshape(-1, 4)
    boxes = geometry.from_bins(bins, convention=convention)
    np.testing.assert_array_equal(geometry.to_bins(boxes, convention=convention), bins)


def test_coordinates_outside_the_image_get_the_edge():
    bins = geometry.to_bins(np.array([[-0.5, 0, 1.5, 1]]))
    np.testing.assert_array_equal(bins, [[0, 0, 1023, 1023]])


def test_no_boxes_keep_their_shape():
    assert geometry.to_bins(np.zeros((0, 4))).shape == (0, 4)
    assert geometry.from_bins(np.zeros((0, 4))).shape == (0, 4)
    assert geometry.iou(np.zeros((0, 4)), np.zeros((3, 4))).shape == (0, 3)


def test_iou_of_half_covered_apart_and_empty_boxes():
    box = [[0, 0, 1, 1]]
    others = [[0, 0, 1, 1], [0, 0, 0.5, 1], [2, 2, 3, 3], [0.5, 0.5, 0.5, 0.5], [1, 0, 2, 1]]
    np.testing.assert_allclose(geometry.iou(box, others), [[1, 0.5, 0, 0, 0]])
    np.testing.assert_array_equal(geometry.iou([[0, 0, 0, 0]], [[0, 0, 0, 0]]), [[0]])


@given(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4))
def test_boxes_return_within_half_a_bin(box):
    back = geometry.from_bins(geometry.to_bins([box]))[0]
    assert np.abs(back - box).max() <= 0.5 / 1023 + 1e-6


def test_an_unknown_convention_is_named():
    with pytest.raises(ValueError, match=r"'1000' is unknown; expected one of \['1023', '1024'\]"):
        geometry.to_bins(np.zeros((1, 4)), convention="1000")


@pytest.mark.parametrize("size", [(64, 64), (200, 31), (3, 90)])
def test_resizing_equals_pillows_bilinear(size):
    image = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)
    height, width = size
    expected = Image.fromarray(image).resize((width, height), resample=Image.Resampling.BILINEAR)
    np.testing.assert_allclose(
        geometry.resize_linear(image, height, width), np.asarray(expected), atol=1e-5
    )


def test_a_pasted_cut_is_the_mask_again():
    mask = np.zeros((100, 150), bool)
    mask[20:84, 30:94] = np.tri(64, dtype=bool)
    box = geometry.find_box(mask)
    np.testing.assert_allclose(box, [0.2, 0.2, 0.84, 94 / 150], rtol=1e-6)
    cut = geometry.cut_mask(mask, box)
    np.testing.assert_array_equal(cut, np.tri(64))
    np.testing.assert_array_equal(geometry.paste_mask(2 * cut - 1, box, 100, 150), mask)


@pytest.mark.parametrize("side", [64, 100, 337, 1080])
def test_a_bin_that_names_a_pixel_ends_at_it(side):
    bins = np.arange(1024)
    boxes = np.float32(np.stack([0 * bins, 0 * bins, bins, bins], axis=1)) / np.float32(1023)
    ends = [geometry.fit_mask(np.ones((64, 64)), box, side, side)[1].shape[0] for box in boxes]
    assert ends == (bins * side // 1023).tolist()


def test_masks_without_a_pixel_have_no_box_and_cannot_be_cut():
    assert geometry.find_box(np.zeros((4, 5), bool)) is None
    with pytest.raises(ValueError, match="covers no pixel of 5x4"):
        geometry.cut_mask(np.ones((4, 5), bool), np.float32([0.1, 0.5, 0.1, 0.9]))
    pixels, inside = geometry.fit_mask(np.ones((64, 64)), np.float32([0, 0, 0.001, 0.001]), 90, 90)
    assert pixels == (0, 0, 0, 0) and inside.size == 0


def test_packed_masks_are_read_back():
    mask = np.random.default_rng(0).random((64, 64)) < 0.5
    assert len(geometry.pack_mask(mask)) == 684
    np.testing.assert_array_equal(geometry.unpack_mask(geometry.pack_mask(mask)), mask)

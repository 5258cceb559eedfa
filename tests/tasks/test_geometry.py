import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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

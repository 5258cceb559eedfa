"""Order: every step's records follow from (seed, step), and sources get their shares."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paligemma_jax.data import index_sampler

ONE = [index_sampler.Source("digits", 10)]
TWO = [index_sampler.Source("coco", 30, weight=2.0), index_sampler.Source("digits", 10)]


def read(seed: int, sources, *, batch_size: int, steps) -> np.ndarray:
    made = index_sampler.Order(seed, sources, batch_size=batch_size)
    return np.stack([made.records(step) for step in steps])


def test_each_pass_is_another_permutation_and_nothing_is_left_out():
    passes = read(7, ONE, batch_size=4, steps=range(10)).reshape(4, 10)
    np.testing.assert_array_equal(np.sort(passes, axis=1), np.tile(np.arange(10), (4, 1)))
    assert len({tuple(row) for row in passes.tolist()}) == 4


def test_the_order_depends_on_seed_and_step_alone():
    first, again, other = (
        read(seed, TWO, batch_size=8, steps=steps)[-1]
        for seed, steps in ((1, range(4)), (1, [3]), (2, [3]))
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_order_is_fixed_for_good():
    # A resumed run relies on it: these numbers may never change.
    assert read(0, ONE, batch_size=10, steps=[0]).tolist() == [[0, 2, 9, 1, 8, 5, 4, 3, 6, 7]]
    assert read(0, TWO, batch_size=9, steps=[5]).tolist() == [[39, 17, 22, 38, 16, 14, 34, 15, 5]]


def test_a_batch_may_be_larger_than_the_data():
    indices = read(0, [index_sampler.Source("", 3)], batch_size=8, steps=[1])[0]
    assert np.bincount(indices).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


def test_sources_take_turns_in_an_even_pattern():
    chosen, turn = index_sampler.take_turns(np.arange(9), [2, 1])
    assert chosen.tolist() == [1, 0, 0, 1, 0, 0, 1, 0, 0]
    assert turn.tolist() == [0, 0, 1, 1, 2, 3, 2, 4, 5]


@settings(deadline=None, max_examples=50)
@given(weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_no_source_is_ever_far_from_its_share(weights):
    positions = np.arange(600)
    chosen, turn = index_sampler.take_turns(positions, weights)
    for number, weight in enumerate(weights):
        is_mine = chosen == number
        np.testing.assert_array_equal(turn[is_mine], np.arange(is_mine.sum()))
        share = (positions + 1) * weight / sum(weights)
        assert np.abs(np.cumsum(is_mine) - share).max() < len(weights)


def test_each_source_is_read_in_passes_of_its_own():
    indices = read(0, TWO, batch_size=9, steps=range(10)).reshape(-1)
    coco, digits = indices[indices < 30], indices[indices >= 30]
    for passes, size, first in ((coco, 30, 0), (digits, 10, 30)):
        expected = np.tile(np.arange(first, first + size), (len(passes) // size, 1))
        np.testing.assert_array_equal(np.sort(passes.reshape(-1, size), axis=1), expected)
    assert len(coco) == 60 and len(digits) == 30


def test_passes_say_how_often_each_source_was_read():
    assert index_sampler.passes(TWO, 90) == {"coco": 2.0, "digits": 3.0}
    assert index_sampler.passes(ONE, 25) == {"digits": 2.5}


def test_a_far_step_costs_no_more_than_the_first():
    step = 10**9
    expected = index_sampler.Order(0, TWO, batch_size=8).records(step)
    assert expected.shape == (8,) and ((expected >= 0) & (expected < 40)).all()


@pytest.mark.parametrize(
    ("size", "weight", "reason"),
    [(0, 1, "coco: no records"), (3, 0, "coco: weight 0"), (3, float("nan"), "coco: weight nan")],
)
def test_a_source_that_cannot_be_read_is_an_error(size, weight, reason):
    with pytest.raises(ValueError, match=reason):
        index_sampler.Source("coco", size, weight)

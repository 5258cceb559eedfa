"""Counts and sizes as people write them."""

import pytest

from paligemma_jax.wording import quantities


@pytest.mark.parametrize(
    ("number", "things", "text"),
    [
        (1, "rows", "1 row"),
        (0, "rows", "0 rows"),
        (1200, "rows of train", "1,200 rows of train"),
        (1, "rows of tests", "1 row of tests"),
        (1, "bad lines", "1 bad line"),
        (1, "boxes clipped to their image", "1 box clipped to their image"),
        (1, "masks without an image", "1 mask without an image"),
        (1, "hard-linked", "1 hard-linked"),
    ],
)
def test_one_thing_is_no_plural(number, things, text):
    assert quantities.count(number, things) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (2**20, "1.0 MiB"),
        (5_846_670_816, "5.45 GiB"),
        (2**41, "2048.00 GiB"),
    ],
)
def test_a_size_has_its_binary_unit(num_bytes, text):
    assert quantities.size(num_bytes) == text

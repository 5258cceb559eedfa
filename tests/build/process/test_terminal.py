"""What a person reads: counts in words."""

import pytest

from paligemma_jax.build.process import terminal


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
    assert terminal.count(number, things) == text


def test_a_table_has_no_spaces_at_the_ends_of_its_lines():
    text = terminal.table([("a", "1", ""), ("long", "22", "x")], header=("", "n", "what"))
    assert text.splitlines() == [
        "       n  what",
        "--------------",
        "a      1",
        "long  22     x",
    ]

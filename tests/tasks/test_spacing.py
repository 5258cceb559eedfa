"""Of two long texts the place is shown where they differ."""

from paligemma_jax.tasks import spacing


def test_short_texts_are_shown_whole():
    assert spacing.describe_difference("a,b", "a ; b").endswith("'a,b' should be 'a ; b'")


def test_long_texts_are_shown_from_shortly_before_they_differ():
    message = spacing.describe_difference("x" * 500 + "," + "y" * 500, "x" * 500 + ";" + "y" * 500)
    x, y = "x" * spacing.BEFORE, "y" * (spacing.MAX_SHOWN - spacing.BEFORE - 1)
    assert message.endswith(f"'...{x},{y}...' should be '...{x};{y}...'")


def test_a_comma_behind_a_label_was_meant_to_part_it_from_the_next_one():
    labels = ("cat,", "cat , ", "cat", "a, b", ",")
    assert [spacing.without_comma(label) for label in labels] == ["cat", "cat", "cat", "a, b", ","]

"""Messages about many rows become a few lines."""

from paligemma_jax.checks import findings


def test_one_message_is_itself_its_count_is_said_elsewhere():
    assert findings.join({"no label": 8}) == "no label"


def test_a_few_messages_are_a_line_each_the_most_frequent_first():
    found = findings.join({"no label": 1, "no box": 3})
    assert found.splitlines() == ["no box (2 more likewise)", "no label"]


def test_many_messages_that_differ_in_what_they_quote_are_one_line():
    messages = {f"image '{n}.png': {n} bytes": 1 for n in range(9)} | {"no label": 2}
    assert findings.join(messages).splitlines() == [
        "image '0.png': 0 bytes (8 more likewise)",
        "no label (1 more likewise)",
    ]


def test_of_many_different_messages_the_rest_is_counted():
    lines = findings.join({f"message {letter}": 2 for letter in "abcdefgh"}).splitlines()
    assert len(lines) == findings.MAX_MESSAGES + 1 and lines[-1] == "... and 6 more"

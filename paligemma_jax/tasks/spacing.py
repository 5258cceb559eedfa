"""What to say of an answer that can be read, but is not written as a model is taught to write."""

import itertools

MAX_SHOWN = 120
BEFORE = 60  # characters shown before the first difference of long texts


def describe_difference(text: str, meant: str) -> str:
    """Returns a message that shows both texts from shortly before where they begin to differ."""
    pairs = zip(text, meant, strict=False)
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    start = max(0, same - BEFORE) if max(len(text), len(meant)) > MAX_SHOWN else 0
    return (
        f"spacing or separators differ: '{_excerpt(text, start)}' should be "
        f"'{_excerpt(meant, start)}'"
    )


def without_comma(label: str) -> str:
    """Returns a label without a comma that was meant to part it from the next object."""
    return label.rstrip(", ") or label


def shorten(text: str) -> str:
    """Returns the beginning of a text."""
    return _excerpt(text, 0)


def _excerpt(text: str, start: int) -> str:
    shown = text[start : start + MAX_SHOWN]
    return "..." * (start > 0) + shown + "..." * (start + MAX_SHOWN < len(text))

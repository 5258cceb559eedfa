"""Answers as text: their canonical form, and what may be trained on."""


def parse(text: str) -> str:
    """Returns the canonical form of an answer: lower case, words one space apart."""
    return " ".join(text.lower().split())


def format(answer: str) -> str:  # the counterpart of parse
    """Returns an answer as text to train on: itself, as its case may matter."""
    return answer


def check(suffix: str) -> str | None:
    """Returns what is wrong with a training answer, or None."""
    return None if suffix.strip() else "the answer is empty"

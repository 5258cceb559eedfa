"""Short answers, scored by exact match of their canonical form."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def parse(text: str) -> str:
    """Returns the canonical form of an answer: lower case, words one space apart."""
    return " ".join(text.lower().split())


def format(answer: str) -> str:  # the counterpart of parse
    """Returns an answer as text to train on: itself, as its case may matter."""
    return answer


def check(suffix: str) -> str | None:
    """Returns what is wrong with a training answer, or None."""
    return None if suffix.strip() else "the answer is empty"


def judge(
    prediction: str,
    *,
    suffix: str | None,
    tokens: Sequence[tuple[str, float]] | None = None,  # noqa: ARG001 (every task's judge)
) -> dict[str, Any]:
    """Compares one answer with the truth: the keys that a row of text has of its own.

    Returns:
      score: 1.0 if both are equal once parsed, else 0.0. correct: the same, as a boolean. Both None
      where the truth (`suffix`) is None.
    """
    if suffix is None:
        return {"score": None, "correct": None}
    correct = parse(prediction) == parse(suffix)
    return {"score": float(correct), "correct": correct}


def score(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the scores of a data set from its rows (keys prediction, score, correct).

    Rows without truth are left out; of no rows the means are nan.

    Returns:
      exact_match: share of answers equal to the truth once parsed.
      num_examples; empty: how many predictions hold no text.
    """
    rows = [row for row in rows if row["correct"] is not None]
    return {
        "exact_match": float(np.mean([row["correct"] for row in rows])) if rows else float("nan"),
        "num_examples": len(rows),
        "empty": sum(not row["prediction"].strip() for row in rows),
    }

"""Captions: judged by the words they share with the truth, beside exact match.

The overlap is a quick measure to follow a run by and to sort a gallery with; it is not CIDEr.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from paligemma_jax.tasks import vqa


def judge(
    prediction: str,
    *,
    suffix: str | None,
    tokens: Sequence[tuple[str, float]] | None = None,
) -> dict[str, Any]:
    """Compares one caption with the truth: as `vqa.judge`, but score is `word_f1`."""
    row = vqa.judge(prediction, suffix=suffix, tokens=tokens)
    if suffix is not None:
        row["score"] = round(word_f1(prediction, suffix), 6)
    return row


def score(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns `vqa.score` and word_f1, the mean of the rows' scores (nan of no rows)."""
    scores = [row["score"] for row in rows if row["score"] is not None]
    return {"word_f1": float(np.mean(scores)) if scores else float("nan"), **vqa.score(rows)}


def word_f1(prediction: str, truth: str) -> float:
    """Returns the F1 of two bags of words, 0..1, once parsed; 1 where both are empty.

    As SQuAD's F1 (arXiv:1606.05250, 6.1), but words keep their articles and punctuation.
    """
    first, second = (Counter(vqa.parse(text).split()) for text in (prediction, truth))
    total = first.total() + second.total()
    return 2 * (first & second).total() / total if total else 1.0

"""Scores of captions: CIDEr-D, BLEU-4 and ROUGE-L as the COCO caption evaluation defines them.

On words that are split alike they equal pycocoevalcap, which big_vision uses. It splits them with
Stanford's tokenizer, which needs Java; `split_words` follows its rules for English in one pattern
and differs in rare words (abbreviations with points, currencies, brackets), so that published
numbers are comparable to about a tenth of a point. METEOR and SPICE need Java too.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from paligemma_jax.tasks import text_metrics

MAX_ORDER = 4  # words in an n-gram
SIGMA = 6.0  # of CIDEr-D's penalty on lengths that differ
BETA = 1.2  # ROUGE-L's weight of recall over precision
# Clitics stand apart as in the Penn Treebank (dog 's, do n't); what is no word is dropped.
WORD = re.compile(r"\w+(?=n't)|n't|'(?:s|m|d|ll|re|ve)\b|\d+(?:[.,:]\d+)*|\w+(?:-\w+)*")

Grams = Counter[tuple[str, ...]]


def split_words(text: str) -> list[str]:
    """Returns a caption's words in lower case, without marks."""
    return WORD.findall(text.lower())


def word_f1(prediction: str, references: Sequence[str]) -> float:
    """Returns the F1 of two bags of words, 0..1, of the most similar true answer.

    As SQuAD's F1 (arXiv:1606.05250, 6.1), but words keep their articles and punctuation.
    """
    words = Counter(text_metrics.canonical(prediction).split())
    truths = [Counter(text_metrics.canonical(reference).split()) for reference in references]
    totals = [words.total() + truth.total() for truth in truths]
    pairs = zip(truths, totals, strict=True)
    return max(2 * (words & truth).total() / total if total else 1.0 for truth, total in pairs)


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """Returns ROUGE-L: precision and recall of the longest common subsequence of words.

    Each is the best over the true captions, joined with recall weighing 1.2 times as much.
    """
    words, truths = split_words(prediction), [split_words(text) for text in references]
    common = [_longest_common(words, truth) for truth in truths]
    precision = max(common) / len(words) if words else 0.0
    shares = zip(common, truths, strict=True)
    recall = max(length / len(truth) if truth else 0.0 for length, truth in shares)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def summarize_bleu(rows: Sequence[text_metrics.Row]) -> dict[str, float]:
    """Returns BLEU-4 of a data set: n-grams are counted over all rows together, not smoothed."""
    matches, totals = np.zeros(MAX_ORDER), np.zeros(MAX_ORDER)
    length = true_length = 0
    for words, truths in _split_rows(rows):
        length += len(words)
        true_length += min((abs(len(t) - len(words)), len(t)) for t in truths)[1]
        grams, known = _grams(words), [_grams(truth) for truth in truths]
        for gram, count in grams.items():
            matches[len(gram) - 1] += min(count, max(truth[gram] for truth in known))
            totals[len(gram) - 1] += count
    if not rows:
        return {"bleu4": float("nan")}
    if not matches.all():
        return {"bleu4": 0.0}
    brevity = min(0.0, 1 - true_length / length)
    return {"bleu4": float(np.exp(np.mean(np.log(matches / totals)) + brevity))}


def summarize_cider(rows: Sequence[text_metrics.Row]) -> dict[str, float]:
    """Returns CIDEr-D (arXiv:1411.5726): the mean over rows, 0..10.

    n-grams weigh by how few images' true captions hold them, so the score of a row depends on the
    others; of a single image it is 0.
    """
    split = [
        (_grams(words), [_grams(truth) for truth in truths]) for words, truths in _split_rows(rows)
    ]
    documents = Counter(gram for _, truths in split for gram in set().union(*truths))
    num_images = math.log(max(len(split), 1))
    scores = []
    for grams, truths in split:
        vector = _Vector(grams, documents, num_images)
        similar = [vector.similarity(_Vector(t, documents, num_images)) for t in truths]
        scores.append(10 * text_metrics.mean(similar))
    return {"cider": text_metrics.mean(scores)}


class _Vector:
    """A caption as weights of its n-grams, the orders apart."""

    def __init__(self, grams: Grams, documents: Grams, log_images: float):
        self.weights = {
            gram: count * (log_images - math.log(max(1, documents[gram])))
            for gram, count in grams.items()
        }
        squares = np.zeros(MAX_ORDER)
        for gram, weight in self.weights.items():
            squares[len(gram) - 1] += weight**2
        self.norms = np.sqrt(squares)
        # As in pycocoevalcap, a caption's length is the number of its pairs of words.
        self.length = sum(count for gram, count in grams.items() if len(gram) == 2)

    def similarity(self, truth: "_Vector") -> float:
        """Returns the mean over orders of the cosine, repeated words clipped, lengths penalized."""
        products = np.zeros(MAX_ORDER)
        for gram, weight in self.weights.items():
            other = truth.weights.get(gram, 0.0)
            products[len(gram) - 1] += min(weight, other) * other
        norms = self.norms * truth.norms
        cosines = np.divide(products, norms, out=products, where=norms != 0)
        return float(
            np.mean(cosines) * math.exp(-((self.length - truth.length) ** 2) / (2 * SIGMA**2))
        )


def _split_rows(rows: Sequence[Any]) -> list[tuple[list[str], list[list[str]]]]:
    return [
        (split_words(row["prediction"]), [split_words(text) for text in row["references"]])
        for row in rows
    ]


def _grams(words: Sequence[str]) -> Grams:
    return Counter(
        tuple(words[start : start + order])
        for order in range(1, MAX_ORDER + 1)
        for start in range(len(words) - order + 1)
    )


def _longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence.

    A row of its table is one integer: bit j is 0 where the entry is one more than the one before it
    (Hyyro, 2004: bit-parallel LCS-length computation revisited).
    """
    places, every = text_metrics.places(second), (1 << len(second)) - 1
    row = every
    for word in first:
        same = row & places.get(word, 0)
        row = ((row + same) | (row - same)) & every
    return len(second) - row.bit_count()

"""Scores of short answers: those of VQA data sets, as big_vision's evaluators define them.

Texts are compared in lower case with their words one space apart; big_vision compares as written
unless told `to_lower`, which its transfer configs of these data sets mostly are.
"""

import re
from collections.abc import Sequence
from typing import Any

from paligemma_jax.tasks import answer_text, text_metrics

ANLS_THRESHOLD = 0.5
MAX_RELATIVE_ERROR = 0.05
YES_NO = ("yes", "no")
CHOICE = re.compile(r"the answer is ([a-z])\.")
COUNT = "count"  # group of TallyQA's true counts
NUMBER_WORDS = {
    **{"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"},
    **{"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10", "eleven": "11"},
    **{"twelve": "12", "thirteen": "13", "fourteen": "14", "fifteen": "15", "sixteen": "16"},
    **{"seventeen": "17", "eighteen": "18", "nineteen": "19", "twenty": "20"},
}
# RSVQA's types of questions whose answers are no numbers: of low and of high resolution.
WITHOUT_NUMBERS = (("comp", "presence", "rural_urban"), ("comp", "presence"))


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """Returns 1 if the answer is one of the true ones (big_vision's acc_any)."""
    return float(answer_text.parse(prediction) in map(answer_text.parse, references))


def vqa_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Returns min(1, n / 3) where n of several people gave this answer (OKVQA, A-OKVQA, VizWiz).

    A single true answer is compared with. https://visualqa.org/evaluation.html without its average
    over leave-one-out sets and without its changes of spelling, which `vqav2.accuracy` has.
    """
    if len(references) == 1:
        return exact_match(prediction, references)
    matches = sum(exact_match(prediction, [reference]) for reference in references)
    return min(1.0, matches / 3)


def anls(prediction: str, references: Sequence[str]) -> float:
    """Returns 1 - edit distance / longer length, 0 below one half; of the nearest true answer.

    DocVQA, InfoVQA, ST-VQA: arXiv:1907.00490, equation 1.
    """
    text = answer_text.parse(prediction)
    return max(_similarity(text, answer_text.parse(reference)) for reference in references)


def relaxed_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Returns 1 if a number is within 5% of a true one, or the text is the same (ChartQA).

    arXiv:2203.10244, 5.1. "12%" is 0.12. A true number of 0 asks for the same text, as in the
    authors' and big_vision's code: 5% of nothing is nothing, and scores stay comparable.
    """
    return float(
        any(_is_near(answer_text.parse(prediction), answer_text.parse(text)) for text in references)
    )


def pope_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Returns 1 if yes or no is right. Both are lower-cased; big_vision does so to one of them."""
    return exact_match(prediction, references)


def summarize_pope(rows: Sequence[text_metrics.Row]) -> dict[str, float]:
    """Returns how many answers were yes or no at all."""
    valid = [answer_text.parse(row["prediction"]) in YES_NO for row in rows]
    return {"pope_valid": text_metrics.mean(valid)}


def tallyqa_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Returns 1 if a count is right; words up to twenty, and "none", are numbers."""
    return float(_to_numeral(prediction) in map(_to_numeral, references))


def summarize_tallyqa(rows: Sequence[text_metrics.Row]) -> dict[str, Any]:
    """Returns means of the rows of each true count, whatever it is (big_vision's end at 15)."""
    counts: dict[str, list[float]] = {}
    for row in rows:
        count = _to_numeral(row["references"][0])
        counts.setdefault(count, []).append(row["values"]["tallyqa_accuracy"])
    ordered = sorted(counts, key=lambda count: (len(count), count))
    return {
        "per_count": {
            count: {"tallyqa_accuracy": text_metrics.mean(counts[count]), "num": len(counts[count])}
            for count in ordered
        }
    }


def scienceqa_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Returns 1 if both texts begin with "the answer is x." and x is the same letter."""
    letter = _choice(prediction)
    return float(letter is not None and letter in map(_choice, references))


def summarize_scienceqa(rows: Sequence[text_metrics.Row]) -> dict[str, float]:
    """Returns how many answers do not begin so."""
    failed = [_choice(row["prediction"]) is None for row in rows]
    return {"scienceqa_parse_failures": text_metrics.mean(failed)}


def summarize_rsvqa(rows: Sequence[text_metrics.Row]) -> dict[str, float]:
    """Returns the mean over types of questions, and over those whose answers are no numbers."""
    by_type: dict[str, list[float]] = {}
    for row in rows:
        kind = row["groups"]["question_type"]
        by_type.setdefault(kind, []).append(row["values"]["rsvqa_accuracy"])
    means = {kind: text_metrics.mean(values) for kind, values in by_type.items()}
    averages = {"rsvqa_average": text_metrics.mean(list(means.values()))}
    # big_vision reports both sets under one name, so that on low resolution rural_urban is lost.
    for kinds in WITHOUT_NUMBERS:
        if set(kinds) <= set(means):
            nonum = text_metrics.mean([means[kind] for kind in kinds])
            return {**averages, "rsvqa_average_nonum": nonum}
    return averages


def _similarity(text: str, truth: str) -> float:
    if not truth:
        return float(not text)
    distance = _edit_distance(text, truth) / max(len(text), len(truth))
    return 1 - distance if distance < ANLS_THRESHOLD else 0.0


def _edit_distance(first: str, second: str) -> int:
    """Returns how many insertions, deletions and replacements make one text the other."""
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (letter != other))
    return row[-1]


def _is_near(text: str, truth: str) -> bool:
    number, true = _to_float(text), _to_float(truth)
    if number is None or not true:  # no number, or 0
        return text == truth
    return abs(number - true) / abs(true) <= MAX_RELATIVE_ERROR


def _to_float(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _to_numeral(text: str) -> str:
    return NUMBER_WORDS.get(answer_text.parse(text), answer_text.parse(text))


def _choice(text: str) -> str | None:
    match = CHOICE.match(text.lower())
    return match[1] if match else None

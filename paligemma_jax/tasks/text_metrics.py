"""How good answers in words are, by chosen metrics: per row, and over a data set.

A row of data has one true answer, its suffix, or several, the list under its key "answers": several
people's answers, several captions. Some metrics read other keys of the row too, as "answer_type".
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

ANSWERS = "answers"  # key of a row of data
# Answers are classes if there are so few, and so many rows of each on average.
MAX_CLASSES, MIN_PER_CLASS = 12, 3
OTHER = "(other)"  # of the confusion matrix

Row = Mapping[str, Any]
Value = Callable[[str, Sequence[str]], float]


@dataclasses.dataclass(frozen=True)
class Metric:
    """One way to score answers.

    Attributes:
      doc: what it is, in a line.
      value: (prediction, true answers) -> score of one row in 0..1. None: it is of a whole data
        set only.
      summarize: (rows) -> further scores of a data set; rows hold prediction, references, values
        and groups. Without `value` this is where the score under the metric's own name comes from.
      groups: keys of a row of data by whose values means are reported too.
      needs: keys that every row of data must have.
      further: {score: what it means, in a line} of what `summarize` adds.
    """

    doc: str
    value: Value | None = None
    summarize: Callable[[Sequence[Row]], dict[str, float]] | None = None
    groups: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    further: Mapping[str, str] = dataclasses.field(default_factory=dict)


Metrics = Mapping[str, Metric]


def find_references(suffix: str | None, extra: Mapping[str, Any]) -> list[str]:
    """Returns the true answers of a row: its key "answers", else its suffix, else none."""
    if extra.get(ANSWERS):
        return list(extra[ANSWERS])
    return [] if suffix is None else [suffix]


def check_row(extra: Mapping[str, Any], metrics: Metrics) -> str | None:
    """Returns what keeps a row of data from being scored by these metrics, or None."""
    given = extra.get(ANSWERS)
    if given is not None and not (
        isinstance(given, list) and all(isinstance(answer, str) for answer in given)
    ):
        return f"key '{ANSWERS}': expected a list of texts, found {given!r:.80}"
    for name, metric in metrics.items():
        if missing := [key for key in metric.needs if key not in extra]:
            return f"score '{name}' needs the key '{missing[0]}'; found {sorted(extra)}"
    return None


def score_example(
    prediction: str,
    *,
    suffix: str | None,
    tokens: Sequence[tuple[str, float]] | None = None,  # noqa: ARG001 (every task has it)
    extra: Mapping[str, Any] | None = None,
    draw_truth: Callable[[], Any] | None = None,  # noqa: ARG001 (likewise)
    metrics: Metrics,
) -> dict[str, Any]:
    """Compares one answer with the true ones: the keys that a row of text has of its own.

    Returns:
      references: the true answers, [] where none is known.
      values: {metric: 0..1} of the metrics that score single rows.
      groups: {key: value} of the row's keys that metrics report means by.
      score: the first of the values; correct: whether it is 1. Both None where the truth is not
        known, or no metric scores single rows.
    """
    extra = extra or {}
    references = find_references(suffix, extra)
    values = {
        name: round(float(metric.value(prediction, references)), 6)
        for name, metric in metrics.items()
        if metric.value and references
    }
    first = next(iter(values.values()), None)
    keys = dict.fromkeys(key for metric in metrics.values() for key in metric.groups)
    return {
        "score": first,
        "correct": None if first is None else first == 1,
        "references": references,
        "values": values,
        "groups": {key: str(extra[key]) for key in keys if key in extra},
    }


def aggregate(rows: Sequence[Row], *, metrics: Metrics) -> dict[str, Any]:
    """Returns the scores of a data set from its rows (prediction, and what `score_example` gave).

    Rows without truth are left out; of no rows the means are nan.

    Returns:
      each metric's mean or own score under its name, and what else it reports.
      per_group: {"key: value": {metric: mean, "num_examples": n}}, where a metric reports groups.
      num_examples; empty: how many predictions hold no text.
      confusion: as in `detection.aggregate`, where answers are classes: a few that come up again
        and again.
    """
    rows = [row for row in rows if row["references"]]
    scores: dict[str, Any] = {}
    for name, metric in metrics.items():
        if metric.value:
            scores[name] = mean([row["values"][name] for row in rows])
        if metric.summarize:
            scores |= metric.summarize(rows)
    groups = _per_group(rows, metrics)
    return {
        **scores,
        **({"per_group": groups} if groups else {}),
        "num_examples": len(rows),
        "empty": sum(not row["prediction"].strip() for row in rows),
        **_confusion(rows),
    }


def pair(row: Row) -> tuple[str, str]:
    """Returns (true answer, answer): the first true one, for any answer that is one of them."""
    truth, answer = row["references"][0].strip(), row["prediction"].strip()
    return truth, truth if answer in {one.strip() for one in row["references"]} else answer


def mean(values: Sequence[float]) -> float:
    """Returns the mean, nan of nothing."""
    return float(np.mean(values)) if len(values) else float("nan")


def _confusion(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns {"confusion": {"labels", "counts"}}, or {} where answers are no classes.

    A prediction that is one of several true answers counts as the first of them.
    """
    truths = [row["references"][0].strip() for row in rows]
    labels = sorted(set(truths))
    if not 2 <= len(labels) <= MAX_CLASSES or len(rows) < MIN_PER_CLASS * len(labels):
        return {}
    place = {label: number for number, label in enumerate([*labels, OTHER])}
    counts = np.zeros((len(place), len(place)), int)
    for row in rows:
        truth, answer = pair(row)
        counts[place[truth], place.get(answer, place[OTHER])] += 1
    return {"confusion": {"labels": list(place), "counts": counts.tolist()}}


def _per_group(rows: Sequence[Row], metrics: Metrics) -> dict[str, dict[str, float]]:
    means: dict[str, dict[str, float]] = defaultdict(dict)
    for name, metric in metrics.items():
        for key in metric.groups:
            members = defaultdict(list)
            for row in rows:
                if key in row["groups"]:
                    members[row["groups"][key]].append(row["values"][name])
            for group, values in sorted(members.items()):
                means[f"{key}: {group}"] |= {name: mean(values), "num_examples": len(values)}
    return dict(means)


def places(items: Sequence[Hashable]) -> dict[Hashable, int]:
    """Returns {item: the bits of the places where it stands}, the first place in the lowest bit."""
    bits: dict[Hashable, int] = {}
    for place, item in enumerate(items):
        bits[item] = bits.get(item, 0) | 1 << place
    return bits


def canonical(text: str) -> str:
    """Returns the canonical form of an answer: lower case, words one space apart."""
    return " ".join(text.lower().split())


def format_answer(answer: str) -> str:  # the counterpart of canonical
    """Returns an answer as text to train on: itself, as its case may matter."""
    return answer


def check_answer(suffix: str) -> str | None:
    """Returns what is wrong with a training answer, or None."""
    return None if suffix.strip() else "the answer is empty"

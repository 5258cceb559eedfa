"""How good answers in words are, by chosen metrics: per row, and over a data set.

A row of data has one true answer, its suffix, or several, the list under its key "answers": several
people's answers, several captions. Some metrics read other keys of the row too, as "answer_type".
"""

import dataclasses
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
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


# Scores of answers that are structures: JSON, counts, and (event, phase) pairs.
#
# Text that does not hold the structure scores 0; nothing raises on a model's text.

NUMBER = (int, float)

# Sentences about events, in lower case and with words one space apart.
NAMES = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
NUMERALS = {name: str(number) for number, name in enumerate(NAMES, 1)}
NUMERAL = rf"(?:\d+(?:st|nd|rd|th)?|{'|'.join(NAMES)}|last)\b"
JOINT = r"(?:,? and |, )(?:the )?"
# "in the 2 phase", "during the early and late stages", "at phases 1, 2 and 3".
PHASES = re.compile(
    r"\b(?:in|at|during|on) (?:the |its |their )?(?:"
    rf"(?:phase|stage)s? (?P<after>{NUMERAL}(?:{JOINT}{NUMERAL})*|[\w-]+)"
    rf"|(?P<before>[\w-]+(?:{JOINT}[\w-]+)*) (?:phase|stage)s?\b)"
)
SEE = r"(?:see|observe|notice|detect|identify)\b"
THERE_IS = r"\bthere (?:is|are|was|were)\b"
I_SEE = rf"\bi (?:can |could )?(?:also )?{SEE}"
LEAD_IN = re.compile(
    rf"^.*?(?:{I_SEE}|{THERE_IS}|\bshows?\b)"
    r"|^(?:yes, |no, )?(?:based on|according to|in|from) (?:the|this) \w+,"
)
UNSEEN = rf"\b(?:can ?not|can't|could not|do not|don't) {SEE}"
NO_EVENT = r"(?:no (?:\w+ )?events?|none|nothing|no others?)\b"
SENTENCE = re.compile(rf"{PHASES.pattern}|{I_SEE}|{UNSEEN}|{THERE_IS}|\b{NO_EVENT}")
SENTENCE_END = re.compile(r"[.!?;](?=\s|$)|\n")
# What stands behind an event and is no part of its name.
STATES = "is|are|was|were|can be|visible|seen|present|occurring|happening|taking place"
STATE = re.compile(rf"(?: (?:{STATES}))+$")
MARKS = " ,.:;!?'\"()"


def check_json(suffix: str) -> str | None:
    """Returns what is wrong with a JSON answer to train on, or None."""
    try:
        json.loads(suffix)
    except (ValueError, RecursionError) as error:
        return f"is no JSON: {error}"
    return None


def json_f1(prediction: str, references: Sequence[str]) -> float:
    """Returns the F1 of two bags of fields (path, value), of the most similar true answer.

    {"a": {"b": 2}, "c": [1, 1]} has the fields a.b = 2, c[] = 1 and c[] = 1: the order of keys and
    of list items does not matter. Texts are compared as answers are, 2 equals 2.0. Two structures
    without fields, as {} and {}, score 1 if they are of one kind.
    """
    return max(_f1(_fields(prediction), _fields(reference)) for reference in references)


def json_exact(prediction: str, references: Sequence[str]) -> float:
    """Returns 1 if all fields agree, as `json_f1` compares them."""
    return float(json_f1(prediction, references) == 1)


def summarize_json(rows: Sequence[Row]) -> dict[str, float]:
    """Returns how many answers are JSON."""
    return {"json_valid": mean([_read(row["prediction"]) is not None for row in rows])}


def count_exact(prediction: str, references: Sequence[str]) -> float:
    """Returns 1 if all counts agree: {"dime": 2, "cent": 0} and {"dime": 2} are the same."""
    counts = _counts(prediction)
    return float(counts is not None and counts in [_counts(reference) for reference in references])


def event_f1(prediction: str, references: Sequence[str]) -> float:
    """Returns the F1 of two sets of events, whatever their phases; see `event_phase_f1`."""
    events = Counter({event for event, _ in _pairs(prediction)})
    truths = [Counter({event for event, _ in _pairs(reference)}) for reference in references]
    return max(_f1(events, truth) for truth in truths)


def event_phase_f1(prediction: str, references: Sequence[str]) -> float:
    """Returns the F1 of two sets of (event, phase) pairs, of the most similar true answer.

    Pairs are written "fall: start; cry: end" (or one on a line), as {"fall": "start"}, as
    [{"event": "fall", "phase": "start"}], or in sentences: "I can see a fall in the start phase, a
    cry in the 2 phase, and no other events are visible." An event may come alone, and may have
    several phases.
    """
    pairs = Counter(_pairs(prediction))
    return max(_f1(pairs, Counter(_pairs(reference))) for reference in references)


def _read(text: str) -> Any:
    """Returns the JSON in a text, or None. (The JSON null is None too: it has no fields.)"""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _fields(text: str) -> Counter[Hashable]:
    value = _read(text)
    if value is None:
        return Counter({("no JSON", canonical(text)): 1})
    fields: Counter[Hashable] = Counter(_walk(value))
    return fields or Counter({("empty", type(value).__name__): 1})


def _walk(value: Any) -> Iterator[tuple[str, Hashable]]:
    waiting = [(value, "")]  # and no recursion: the text may nest as deep as its parser can
    while waiting:
        value, path = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(inner, f"{path}.{canonical(key)}") for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(inner, f"{path}[]") for inner in value]
        elif isinstance(value, bool) or value is None:
            yield path, str(value)  # True is no 1
        elif isinstance(value, NUMBER):
            yield path, value  # 2 and 2.0 are equal, and so are their hashes
        else:
            yield path, canonical(value)


def _counts(text: str) -> dict[str, int | float] | None:
    value = _read(text)
    if not isinstance(value, Mapping):
        return None
    if not all(isinstance(n, NUMBER) and not isinstance(n, bool) for n in value.values()):
        return None
    return {canonical(label): count for label, count in value.items() if count}


def _pairs(text: str) -> set[tuple[str, str]]:
    value = _read(text)
    if isinstance(value, Mapping):
        listed = [(key, inner) for key, inner in value.items()]
    elif isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        listed = [(item.get("event", ""), item.get("phase", "")) for item in value]
    elif SENTENCE.search(canonical(text)):
        parts = map(canonical, SENTENCE_END.split(text))
        listed = [pair for part in parts for pair in _read_sentence(part)]
    else:
        parts = [part.partition(":") for line in text.splitlines() for part in line.split(";")]
        listed = [(event, phase) for event, _, phase in parts]
    pairs = set()
    for event, phases in listed:
        for phase in phases if isinstance(phases, list) else [phases]:
            pairs.add((canonical(str(event)), canonical(str(phase))))
    return {pair for pair in pairs if pair[0]}


def _read_sentence(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yields (event, its phases) that a canonical sentence names; "no other events" are none.

    Events belong to the phase that follows them, "a and b in the 2 phase", or to the one before if
    the sentence begins with a phase. Others have none.
    """
    if re.search(UNSEEN, text):
        return
    matches = list(PHASES.finditer(text))
    phases = [_read_phases(match["after"] or match["before"]) for match in matches]
    starts, ends = (match.start() for match in matches), (match.end() for match in matches)
    between = zip((0, *ends), (*starts, len(text)), strict=True)
    events = [_events(text[start:end]) for start, end in between]
    phases = [*phases, [""]] if events[0] else [[""], *phases]
    for named, own in zip(events, phases, strict=True):
        yield from ((event, own) for event in named)


def _read_phases(text: str) -> list[str]:
    words = re.split(JOINT, text)
    return [NUMERALS.get(word, re.sub(r"(\d)(?:st|nd|rd|th)$", r"\1", word)) for word in words]


def _events(text: str) -> list[str]:
    """Returns the events in a part of a sentence without a phase: "and a, b are visible"."""
    parts = re.split(JOINT, f", {LEAD_IN.sub('', text)}")
    bare = [STATE.sub("", part.strip(MARKS)) for part in parts]
    names = [re.sub(r"^(?:(?:also|then|an?|the|event) )+", "", name) for name in bare]
    return [name for name in names if name and not re.match(NO_EVENT, name)]


def _f1(first: Counter[Any], second: Counter[Any]) -> float:
    total = first.total() + second.total()
    return 2 * (first & second).total() / total if total else 1.0

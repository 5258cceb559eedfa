"""Scores of answers that are structures: JSON, counts, and (event, phase) pairs.

Text that does not hold the structure scores 0; nothing raises on a model's text.
"""

import json
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from paligemma_jax.tasks import text_metrics

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


def summarize_json(rows: Sequence[text_metrics.Row]) -> dict[str, float]:
    """Returns how many answers are JSON."""
    return {"json_valid": text_metrics.mean([_read(row["prediction"]) is not None for row in rows])}


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
        return Counter({("no JSON", text_metrics.canonical(text)): 1})
    fields: Counter[Hashable] = Counter(_walk(value))
    return fields or Counter({("empty", type(value).__name__): 1})


def _walk(value: Any) -> Iterator[tuple[str, Hashable]]:
    waiting = [(value, "")]  # and no recursion: the text may nest as deep as its parser can
    while waiting:
        value, path = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [
                (inner, f"{path}.{text_metrics.canonical(key)}") for key, inner in value.items()
            ]
        elif isinstance(value, list):
            waiting += [(inner, f"{path}[]") for inner in value]
        elif isinstance(value, bool) or value is None:
            yield path, str(value)  # True is no 1
        elif isinstance(value, NUMBER):
            yield path, value  # 2 and 2.0 are equal, and so are their hashes
        else:
            yield path, text_metrics.canonical(value)


def _counts(text: str) -> dict[str, int | float] | None:
    value = _read(text)
    if not isinstance(value, Mapping):
        return None
    if not all(isinstance(n, NUMBER) and not isinstance(n, bool) for n in value.values()):
        return None
    return {text_metrics.canonical(label): count for label, count in value.items() if count}


def _pairs(text: str) -> set[tuple[str, str]]:
    value = _read(text)
    if isinstance(value, Mapping):
        listed = [(key, inner) for key, inner in value.items()]
    elif isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        listed = [(item.get("event", ""), item.get("phase", "")) for item in value]
    elif SENTENCE.search(text_metrics.canonical(text)):
        parts = map(text_metrics.canonical, SENTENCE_END.split(text))
        listed = [pair for part in parts for pair in _read_sentence(part)]
    else:
        parts = [part.partition(":") for line in text.splitlines() for part in line.split(";")]
        listed = [(event, phase) for event, _, phase in parts]
    pairs = set()
    for event, phases in listed:
        for phase in phases if isinstance(phases, list) else [phases]:
            pairs.add((text_metrics.canonical(str(event)), text_metrics.canonical(str(phase))))
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

"""Scores of answers that are structures: JSON, counts, and (event, phase) pairs.

Text that does not hold the structure scores 0; nothing raises on a model's text.
"""

import json
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from paligemma_jax.tasks import text_metrics

NUMBER = (int, float)


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

    Pairs are written "fall: start; cry: end" (or one on a line), as {"fall": "start"}, or as
    [{"event": "fall", "phase": "start"}]. An event may come alone, and may have several phases.
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
    fields: Counter[Hashable] = Counter(_walk(value, ""))
    return fields or Counter({("empty", type(value).__name__): 1})


def _walk(value: Any, path: str) -> Iterator[tuple[str, Hashable]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _walk(inner, f"{path}.{text_metrics.canonical(key)}")
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner, f"{path}[]")
    elif isinstance(value, bool) or value is None:
        yield path, str(value)  # True is no 1
    elif isinstance(value, NUMBER):
        yield path, float(value)
    else:
        yield path, text_metrics.canonical(value)


def _counts(text: str) -> dict[str, float] | None:
    value = _read(text)
    if not isinstance(value, Mapping):
        return None
    if not all(isinstance(n, NUMBER) and not isinstance(n, bool) for n in value.values()):
        return None
    return {text_metrics.canonical(label): float(count) for label, count in value.items() if count}


def _pairs(text: str) -> set[tuple[str, str]]:
    value = _read(text)
    if isinstance(value, Mapping):
        listed = [(key, inner) for key, inner in value.items()]
    elif isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        listed = [(item.get("event", ""), item.get("phase", "")) for item in value]
    else:
        parts = [part.partition(":") for line in text.splitlines() for part in line.split(";")]
        listed = [(event, phase) for event, _, phase in parts]
    pairs = set()
    for event, phases in listed:
        for phase in phases if isinstance(phases, list) else [phases]:
            pairs.add((text_metrics.canonical(str(event)), text_metrics.canonical(str(phase))))
    return {pair for pair in pairs if pair[0]}


def _f1(first: Counter[Any], second: Counter[Any]) -> float:
    total = first.total() + second.total()
    return 2 * (first & second).total() / total if total else 1.0

"""What a look at a data set, or at a machine, finds: how bad it is, where, and what to do."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

# error: training refuses it, learns something wrong, or is scored wrongly. warning: probably not
# meant. note: worth knowing.
SEVERITIES = ("error", "warning", "note")
MAX_PLACES = 5
MAX_MESSAGES = 5
# What differs between messages that say the same of different rows.
DETAILS = re.compile(r"'[^']*'|\d+")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One kind of trouble in one place.

    Attributes:
      severity: of SEVERITIES.
      kind: a few words, always the same for the same trouble.
      what: a sentence with what was found; of different ones a line each.
      remedy: what to do about it.
      subject: the data set or the thing it is about, "" for none.
      count: how often.
      places: the first of these, "file.jsonl:12" where it is a row.
    """

    severity: str
    kind: str
    what: str
    remedy: str
    subject: str = ""
    count: int = 1
    places: tuple[str, ...] = ()


def at(places: Iterable[str]) -> dict[str, Any]:
    """Returns the fields `count` and `places` of a finding for all the places it is at."""
    everywhere = list(places)
    return {"count": len(everywhere), "places": tuple(everywhere[:MAX_PLACES])}


def join(messages: Mapping[str, int]) -> str:
    """Returns different messages, {message: how often}, as lines: the most frequent first.

    Where there are many, those that differ in what they quote and count alone become one.
    """
    groups: dict[str, list[tuple[str, int]]] = {}
    for message, count in messages.items():
        key = message if len(messages) <= MAX_MESSAGES else DETAILS.sub("*", message)
        groups.setdefault(key, []).append((message, count))
    totals = collections.Counter({key: sum(n for _, n in g) for key, g in groups.items()})
    shown, is_alone = totals.most_common(MAX_MESSAGES), len(totals) == 1
    lines = []
    for key, total in shown:
        others = "" if is_alone or total == 1 else f" ({total - 1} more likewise)"
        lines.append(groups[key][0][0] + others)
    if more := totals.total() - sum(total for _, total in shown):
        lines.append(f"... and {more} more")
    return "\n".join(lines)


def sort(findings: Iterable[Finding]) -> list[Finding]:
    """Returns findings with the worst first, otherwise in their order."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))

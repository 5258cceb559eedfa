"""What a look at a data set, or at a machine, finds: how bad it is, where, and what to do."""

import dataclasses
from collections.abc import Iterable
from typing import Any

# error: training refuses it, learns something wrong, or is scored wrongly. warning: probably not
# meant. note: worth knowing.
SEVERITIES = ("error", "warning", "note")
MAX_PLACES = 5


@dataclasses.dataclass(frozen=True)
class Finding:
    """One kind of trouble in one place.

    Attributes:
      severity: of SEVERITIES.
      kind: a few words, always the same for the same trouble.
      what: a sentence with what was found.
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


def sort(findings: Iterable[Finding]) -> list[Finding]:
    """Returns findings with the worst first, otherwise in their order."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))

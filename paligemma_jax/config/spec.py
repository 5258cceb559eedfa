"""What a config key is, and which one was probably meant."""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

NUMBER = (int, float)
OPTIONAL = (type(None),)
RULES = (list, tuple)


@dataclasses.dataclass(frozen=True)
class Key:
    """A config key: dotted name, default, allowed types (None included where it may be unset).

    `rule_types` are those of the values where a key may be a list of pairs (text, value), `least`
    the smallest number that is allowed.
    """

    name: str
    default: Any
    types: tuple[type, ...]
    doc: str
    choices: tuple[Any, ...] = ()
    rule_types: tuple[type, ...] = ()
    least: int | None = None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns "Did you mean 'x'? " for the nearest known name, or nothing."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    leaf = difflib.get_close_matches(
        name.rpartition(".")[2], [k.rpartition(".")[2] for k in known], n=1, cutoff=0.7
    )
    if not near and leaf:
        near = [k for k in known if k.rpartition(".")[2] == leaf[0]]
    return f"Did you mean '{near[0]}'? " if near else ""

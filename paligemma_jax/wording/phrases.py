"""How messages word things: the name that a misspelled one was meant to be, counts, sizes."""

import difflib
import re
from collections.abc import Iterable, Mapping

# As `difflib.get_close_matches` rates likeness, 0..1. One guess must be better than a short list.
LIST_CUTOFF, GUESS_CUTOFF, LEAF_CUTOFF = 0.5, 0.6, 0.7


def nearest(
    name: str, known: Iterable[str], *, count: int = 3, cutoff: float = LIST_CUTOFF
) -> list[str]:
    """Returns up to `count` of the known names that look most like `name`, best first."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=cutoff)


def guess(name: str, known: Iterable[str]) -> str | None:
    """Returns the one known name that `name` was probably meant to be, or None.

    Dotted names ("input.batch_size") are also compared by their last part alone.
    """
    known = list(known)
    if near := nearest(name, known, count=1, cutoff=GUESS_CUTOFF):
        return near[0]
    leaves = {full.rpartition(".")[2]: full for full in reversed(known)}
    near = nearest(name.rpartition(".")[2], leaves, count=1, cutoff=LEAF_CUTOFF)
    return leaves[near[0]] if near else None


def did_you_mean(
    name: str,
    known: Iterable[str],
    *,
    prefix: str = "",
    aliases: Mapping[str, str] | None = None,
) -> str:
    """Returns "Did you mean 'x'? ", to stand before a list of the known names, or "".

    Args:
      name: what was given.
      known: what is allowed.
      prefix: shown before the guess, where `known` are names without their folder.
      aliases: what others call a known name: it is the guess wherever `known` has it.
    """
    known = list(known)
    alias = (aliases or {}).get(name)
    best = alias if alias in known else guess(name, known)
    return f"Did you mean '{prefix}{best}'? " if best else ""


# Counts and sizes as people write them.

# Characters that no terminal and no browser shows: control codes but tab and newline, half
# surrogates, noncharacters, and those that turn the direction of text around, by which it can be
# made to look like another (Unicode TR36, 2.6). Joiners stay: letters and emoji are made with them.
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
    "\ud800-\udfff\ufeff\ufff9-\uffff]"
)
# rows of train -> row of train, boxes -> box, classes -> class
PLURAL = re.compile(r"(?:(?<=x)|(?<=ss))es\b|s\b")


def visible(text: str) -> str:
    """Returns text with what nobody sees escaped, as in JSON: a change of direction is \\u202e."""
    return HIDDEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def count(number: int, things: str) -> str:
    """Returns "1,200 rows" or "1 row". `things`: a phrase whose first plural is what is counted."""
    return f"{number:,} {PLURAL.sub('', things, count=1) if number == 1 else things}"


def size(num_bytes: float) -> str:
    """Returns a number of bytes in its binary unit: "12 B", "1.5 MiB", "5.45 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.2f} GiB"


def duration(seconds: float) -> str:
    """Returns a time in one or two units: "12 s", "3 min", "2 h 5 min", "3 d 4 h"."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"

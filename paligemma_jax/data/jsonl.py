"""JSONL files line by line, with every bad line named: what reading and importing share."""

import collections
import json
from collections.abc import Iterator, Sequence
from typing import Any

from paligemma_jax.data import file_heads

MAX_LISTED = 20
MAX_MESSAGES = 1000  # of a kind that are told apart
CORRECT = "correct or remove these lines: a file is read whole or not at all"

# What an import writes beside the files of its splits.
DROPPED, MASK_ROUND_TRIP = "dropped.jsonl", "mask_round_trip.jsonl"

Problem = tuple[str, str]  # (kind, to count by; message, to show)


def read_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Yields (number, line), without a byte order mark and the blank lines at the end.

    Raises:
      ValueError: an empty file, UTF-16, a Git LFS pointer or a web page.
    """
    is_empty, blank = True, []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                if description := file_heads.describe(line):
                    raise ValueError(f"{path} is {description}")
                line = _strip_byte_order_mark(path, line)
            if line.strip():
                yield from blank
                yield number, line
                is_empty, blank = False, []
            else:
                blank.append((number, line))
    if is_empty:
        raise ValueError(f"{path}: the file is empty; expected one JSON object per line")


def _strip_byte_order_mark(path: str, line: bytes) -> bytes:
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{path}: the file is UTF-16; save it as UTF-8")
    return line.removeprefix(b"\xef\xbb\xbf")


def parse_line(line: bytes) -> tuple[dict[str, Any] | None, Problem | None]:
    """Returns (row, None) or (None, what is wrong with the line)."""
    if not line.strip():
        return None, ("empty line", "the line is empty; remove it")
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        wrong_byte = f"byte {line[error.start]:#04x} at position {error.start + 1}"
        return None, ("not UTF-8", f"{wrong_byte} is not UTF-8; save the file as UTF-8")
    except json.JSONDecodeError as error:
        return None, ("broken JSON", f"broken JSON at character {error.pos + 1}: {error.msg}")
    except (ValueError, RecursionError) as error:  # a number too long, brackets too deep
        return None, ("broken JSON", f"broken JSON: {error}")
    if not isinstance(row, dict):
        message = f"expected one JSON object per line, found a {type(row).__name__}"
        return None, ("not an object", message)
    return row, None


class Report:
    """Counts bad lines, and keeps what is wrong with them to show it.

    Attributes:
      num_lines, num_bad: lines looked at, and those that are bad.
      kinds: how many problems there are of each kind; a line may have several.
      places: the first sources of each kind.
      messages: how often each message is there, by kind; the first `MAX_MESSAGES` of them.
      remedies: what to do about a kind, where it is another thing than `CORRECT`.
      notes: what was read otherwise than it is written, in words, and in how many lines.
    """

    def __init__(self, path: str):
        self.path = path
        self.num_lines = self.num_bad = 0
        self.kinds: collections.Counter[str] = collections.Counter()
        self.places: dict[str, list[str]] = {}
        self.messages: dict[str, collections.Counter[str]] = {}
        self.remedies: dict[str, str] = {}
        self.notes: collections.Counter[str] = collections.Counter()
        # All that is wrong with a line -> the lines that have just that: the first, how many.
        self._alike: dict[str, tuple[str, int]] = {}

    def add(self, source: str, problems: Sequence[Problem]) -> None:
        self.num_lines += 1
        if not problems:
            return
        self.num_bad += 1
        for kind, message in problems:
            self.kinds[kind] += 1
            messages = self.messages.setdefault(kind, collections.Counter())
            if message in messages or len(messages) < MAX_MESSAGES:
                messages[message] += 1
            places = self.places.setdefault(kind, [])
            if len(places) < MAX_LISTED and source not in places:
                places.append(source)
        text = "; ".join(message for _, message in problems)
        first, count = self._alike.get(text, (source, 0))
        if count or len(self._alike) < MAX_LISTED:
            self._alike[text] = first, count + 1

    def remedy(self, kind: str) -> str:
        """Returns what to do about a kind of problem."""
        return self.remedies.get(kind, CORRECT)

    def raise_problems(self) -> None:
        """Raises a ValueError that lists the bad lines, equal ones once, if there are any."""
        if not self.num_bad:
            return
        are = "is" if self.num_bad == 1 else "are"
        lines = [f"{self.path}: {self.num_bad} of {self.num_lines} lines {are} bad"]
        for text, (first, count) in self._alike.items():
            others = f" ({count - 1} more likewise)" if count > 1 else ""
            lines.append(f"{first}: {text}{others}")
        if more := self.num_bad - sum(count for _, count in self._alike.values()):
            lines.append(f"... and {more} more")
        lines.append(f"In all: {', '.join(f'{n} {kind}' for kind, n in self.kinds.most_common())}")
        lines += dict.fromkeys(f"-> {self.remedy(kind)}" for kind in self.kinds)
        raise ValueError("\n  ".join(lines))

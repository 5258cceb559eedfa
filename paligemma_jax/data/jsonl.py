"""JSONL files line by line, with every bad line named: what reading and importing share."""

import collections
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

MAX_LISTED = 20

Problem = tuple[str, str]  # (kind, to count by; message, to show)


def check_exists(path: str) -> None:
    """Raises a ValueError that names the JSONL files nearby if there is no such file."""
    if os.path.isfile(path):
        return
    folder = os.path.dirname(os.path.abspath(path))
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    found = [name for name in names if name.endswith(".jsonl")][:10]
    raise ValueError(f"{path}: no such file; JSONL files in {folder}: {found or 'none'}")


def read_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Yields (number, line), without a byte order mark and the blank lines at the end.

    Raises:
      ValueError: an empty file, or UTF-16.
    """
    is_empty, blank = True, []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
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
        found = f"byte {line[error.start]:#04x} at position {error.start + 1}"
        return None, ("not UTF-8", f"{found} is not UTF-8; save the file as UTF-8")
    except (ValueError, RecursionError) as error:
        return None, ("broken JSON", f"broken JSON: {error}")
    if not isinstance(row, dict):
        message = f"expected one JSON object per line, found a {type(row).__name__}"
        return None, ("broken JSON", message)
    return row, None


class Report:
    """Counts bad lines and keeps the first ones to show.

    Attributes:
      num_lines, num_bad: lines looked at, and those that are bad.
      kinds: how many problems there are of each kind; a line may have several.
      examples: the first (source, message) of each kind.
      shown: the first bad lines, each with all that is wrong with it.
    """

    def __init__(self, path: str):
        self.path = path
        self.num_lines = self.num_bad = 0
        self.kinds: collections.Counter[str] = collections.Counter()
        self.examples: dict[str, list[tuple[str, str]]] = {}
        self.shown: list[str] = []

    def add(self, source: str, problems: Sequence[Problem]) -> None:
        self.num_lines += 1
        if not problems:
            return
        self.num_bad += 1
        for kind, message in problems:
            self.kinds[kind] += 1
            examples = self.examples.setdefault(kind, [])
            if len(examples) < MAX_LISTED:
                examples.append((source, message))
        if len(self.shown) < MAX_LISTED:
            self.shown.append(f"{source}: " + "; ".join(message for _, message in problems))

    def raise_problems(self) -> None:
        """Raises a ValueError that lists the bad lines, if there are any."""
        if not self.num_bad:
            return
        lines = [f"{self.path}: {self.num_bad} of {self.num_lines} lines are bad", *self.shown]
        if more := self.num_bad - len(self.shown):
            lines.append(f"... and {more} more")
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
        lines.append(f"In all: {kinds}. Correct or remove these lines: none is skipped silently")
        raise ValueError("\n  ".join(lines))

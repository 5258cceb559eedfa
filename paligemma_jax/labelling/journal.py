"""The journal of a data set that is labelled: every change, on the disk before it is answered.

A line is an entry, or says that a file holds the changes of all entries before it:

    {"kind": "change", "by": "ann", "at": "2026-12-01T18:00:00Z", "changes": [
      {"key": "labels.jsonl|a.png|0", "revision": 2, "before": {...}, "after": {...}}]}
    {"kind": "written", "file": "labels.jsonl", "entries": 12}

A process that is killed leaves at most one line without an end, the change that nobody was told is
kept: it is cut off when the journal is opened again.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from paligemma_jax.files import atomic

Row = dict[str, Any]

# What an entry is: a change; one taken back; one made again; one that nothing came of, because
# somebody else had changed the same row: it is kept to be looked at.
CHANGE, UNDO, REDO, REFUSED = KINDS = ("change", "undo", "redo", "refused")
WRITTEN = "written"


@dataclasses.dataclass(frozen=True)
class Change:
    """A row of a data set before and after.

    Attributes:
      key: of the item, see `row_store.Item`.
      revision: the item's after the change.
      before, after: the row; None: there is none, the image has no label.
    """

    key: str
    revision: int
    before: Row | None
    after: Row | None


@dataclasses.dataclass(frozen=True)
class Entry:
    """Changes that were made at once, and are taken back at once.

    Attributes:
      kind: one of `KINDS`.
      by: name of the labeller.
      at: when, in UTC.
      changes: at least one.
    """

    kind: str
    by: str
    at: str
    changes: tuple[Change, ...]


@dataclasses.dataclass(frozen=True)
class History:
    """What a journal holds.

    Attributes:
      entries: in their order.
      written: file -> how many of the entries it holds.
    """

    entries: tuple[Entry, ...] = ()
    written: Mapping[str, int] = dataclasses.field(default_factory=dict)


class Journal:
    """The file, open to be written to; make it with `open_journal`."""

    def __init__(self, path: pathlib.Path):
        self._file = atomic.GrowingFile(path)

    def add(self, entry: Entry) -> None:
        """Returns when an entry is on the disk; a WriteError if it is not."""
        self._append(dataclasses.asdict(entry))

    def mark_written(self, file: str, entries: int) -> None:
        """Notes that a file holds the first so many entries."""
        self._append({"kind": WRITTEN, "file": file, "entries": entries})

    def close(self) -> None:
        self._file.close()

    def _append(self, line: Mapping[str, Any]) -> None:
        self._file.append(json.dumps(line, ensure_ascii=False).encode("utf-8") + b"\n")
        self._file.sync()


def open_journal(path: pathlib.Path) -> tuple[Journal, History]:
    """Returns (the journal, what it holds); makes it if need be.

    Raises:
      ValueError: a line that is none of a journal's.
    """
    history = History()
    if path.exists():
        whole = path.read_bytes()
        kept = whole[: whole.rfind(b"\n") + 1]
        history = _read(kept.splitlines(), path)
        if len(kept) < len(whole):
            os.truncate(path, len(kept))
    path.parent.mkdir(parents=True, exist_ok=True)
    return Journal(path), history


def _read(lines: Sequence[bytes], path: pathlib.Path) -> History:
    entries: list[Entry] = []
    written: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            if values["kind"] == WRITTEN:
                written[values["file"]] = values["entries"]
                continue
            if values["kind"] not in KINDS:
                raise ValueError(f"kind {values['kind']!r}")
            changes = tuple(Change(**one) for one in values.pop("changes"))
            entries.append(Entry(**values, changes=changes))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}:{number}: no line of a journal ({error!r:.80}). Changes that are not in "
                f"the data set's files yet are in it: mend the line, or move the file away to "
                f"begin a new one"
            ) from error
    return History(tuple(entries), written)

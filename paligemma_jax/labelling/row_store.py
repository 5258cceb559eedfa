"""A data set that is labelled: its rows, who changed them, and what was before.

A change is in the journal, on the disk, before `Store.change` returns; the JSONL file follows at
once, whole or not at all, in a thread of its own. Whenever the process is killed, the next one puts
into the file what the journal has and the file has not. Rows that nobody changed keep their bytes.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from paligemma_jax.console import say
from paligemma_jax.files import atomic
from paligemma_jax.labelling import journal

Row = dict[str, Any]

ABOUT = "labelling"  # key of a row: who labelled it, when, which revision, and whether it is done
MAX_STEPS = 1000  # that a labeller can take back
RETRY_S = 5.0  # between attempts to write a file that the disk refuses


@dataclasses.dataclass
class Item:
    """A row, or an image without one.

    Attributes:
      key: "FILE|IMAGE|N": the file it is in or will be in, its images, the how manieth row of
        these images it is, from 0.
      file: name of that file.
      images: as the row names them.
      row: None: no label yet.
      revision: counts the changes; who saves a change says which revision it is of.
      line: the row as it stands in the file.
    """

    key: str
    file: str
    images: tuple[str, ...]
    row: Row | None = None
    revision: int = 0
    line: bytes = b""

    @property
    def about(self) -> Row:
        """Who labelled the row and when; {} if it was not labelled here."""
        about = (self.row or {}).get(ABOUT)
        return about if isinstance(about, dict) else {}

    @property
    def is_labelled(self) -> bool:
        return isinstance((self.row or {}).get("suffix"), str)

    @property
    def is_done(self) -> bool:
        """Whether it is labelled, and whoever did so said that nothing is missing."""
        return self.is_labelled and self.about.get("done", True) is True

    def set_row(self, row: Row | None) -> None:
        self.row = row
        self.line = b"" if row is None else _to_line(row)


@dataclasses.dataclass(frozen=True)
class Edit:
    """A row to be; `revision`: of the item that the labeller saw."""

    key: str
    revision: int
    row: Row | None


class Conflict(ValueError):
    """Somebody else changed the same rows: `items` are what they are now."""

    def __init__(self, items: Sequence[Item]):
        names = ", ".join(item.images[0] if item.images else item.key for item in items)
        who = ", ".join(sorted({str(item.about.get("by", "somebody")) for item in items}))
        super().__init__(f"{names}: changed by {who} meanwhile")
        self.items = list(items)


class Store:
    """The items of a data set, in order; make it with `data_opening.open_store`.

    Every method may be called from any thread.

    Args:
      folder: of the data set.
      items: in the order in which they are shown.
      orders: file -> keys of its rows, in their order there.
      log: the journal.
      history: what it holds.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        items: Sequence[Item],
        orders: dict[str, list[str]],
        log: journal.Journal,
        history: journal.History,
    ):
        self.folder = folder
        self.write_error: str | None = None
        self._items = {item.key: item for item in items}
        self._numbers = {key: number for number, key in enumerate(self._items)}
        self._orders = orders
        self._log = log
        self._num_entries = len(history.entries)
        self._latest: list[str] = []  # keys in the order of their changes, for `changed_since`
        self._undo: dict[str, list[journal.Entry]] = {}
        self._redo: dict[str, list[journal.Entry]] = {}
        self._lock = threading.RLock()
        self._dirty: set[str] = set()
        self._wake = threading.Condition(self._lock)
        self._is_writing = self._is_closed = False
        self._catch_up(history)
        self._writer = threading.Thread(target=self._write_on, daemon=True)
        self._writer.start()

    def __len__(self) -> int:
        return len(self._items)

    def items(self) -> list[Item]:
        """Returns copies of all items, in order."""
        with self._lock:
            return [dataclasses.replace(item) for item in self._items.values()]

    def get(self, key: str) -> Item:
        """Returns a copy of an item, or raises a ValueError."""
        with self._lock:
            if key not in self._items:
                raise ValueError(f"there is no item {key!r:.200}")
            return dataclasses.replace(self._items[key])

    def number(self, key: str) -> int:
        """Returns the place of an item, or raises a ValueError."""
        if key not in self._numbers:
            raise ValueError(f"there is no item {key!r:.200}")
        return self._numbers[key]

    def add(self, file: str, images: Sequence[str]) -> Item:
        """Returns a new item: one more row of these images, or a new image. It has no label."""
        with self._lock:
            key = next_key(file, images, self._items)
            item = self._items[key] = Item(key, file, tuple(images))
            self._numbers[key] = len(self._numbers)
            self._latest.append(key)
            return dataclasses.replace(item)

    def change(self, edits: Sequence[Edit], *, by: str) -> journal.Entry:
        """Makes changes, all or none, and returns them.

        Raises:
          Conflict: somebody changed one of the rows; what was to be saved is in the journal.
          WriteError: the disk does not take it; nothing is changed.
        """
        with self._lock:
            current = [self.get(edit.key) for edit in edits]
            is_late = [
                item.revision != edit.revision for item, edit in zip(current, edits, strict=True)
            ]
            changes = tuple(
                journal.Change(item.key, item.revision + 1, item.row, edit.row)
                for item, edit in zip(current, edits, strict=True)
            )
            if any(is_late):
                self._note(journal.Entry(journal.REFUSED, by, now(), changes))
                late = zip(current, is_late, strict=True)
                raise Conflict([item for item, changed in late if changed])
            entry = journal.Entry(journal.CHANGE, by, now(), changes)
            self._commit(entry)
            return entry

    def undo(self, *, by: str) -> journal.Entry | None:
        """Takes back the labeller's last change; None where there is none.

        Raises:
          Conflict: somebody changed one of its rows since; it stays as it is.
        """
        return self._step(self._undo, journal.UNDO, by)

    def redo(self, *, by: str) -> journal.Entry | None:
        """Makes the labeller's change again that was taken back last; errors as of `undo`."""
        return self._step(self._redo, journal.REDO, by)

    def steps(self, by: str) -> tuple[int, int]:
        """Returns how many changes a labeller can take back, and make again."""
        with self._lock:
            return len(self._undo.get(by, ())), len(self._redo.get(by, ()))

    def changed_since(self, mark: int) -> tuple[int, list[Item]]:
        """Returns (a mark for the next call, the items that changed since `mark`)."""
        with self._lock:
            keys = dict.fromkeys(self._latest[max(mark, 0) :])
            return len(self._latest), [dataclasses.replace(self._items[key]) for key in keys]

    @property
    def is_written(self) -> bool:
        """Whether all files hold all changes; the journal does in any case."""
        with self._lock:
            return not self._dirty and not self._is_writing

    def flush(self) -> None:
        """Returns when all files hold all changes; a WriteError if the disk refuses them."""
        with self._wake:
            while not self.is_written:
                self._wake.notify_all()
                self._wake.wait(0.05)
                if self.write_error:
                    raise atomic.WriteError(0, self.write_error)

    def close(self) -> None:
        """Writes what is to be written, and ends."""
        try:
            self.flush()
        finally:
            with self._wake:
                self._is_closed = True
                self._wake.notify_all()
            self._writer.join()
            self._log.close()

    def _step(
        self, stacks: dict[str, list[journal.Entry]], kind: str, by: str
    ) -> journal.Entry | None:
        with self._lock:
            if not stacks.get(by):
                return None
            last = stacks[by][-1]
            current = [self.get(change.key) for change in last.changes]
            pairs = list(zip(current, last.changes, strict=True))
            if changed := [item for item, one in pairs if _bare(item.row) != _bare(one.after)]:
                stacks[by].pop()  # or every further call would end here
                raise Conflict(changed)
            changes = tuple(
                journal.Change(item.key, item.revision + 1, item.row, _renew(change.before, item))
                for item, change in pairs
            )
            entry = journal.Entry(kind, by, now(), changes)
            self._commit(entry)
            return entry

    def _commit(self, entry: journal.Entry) -> None:
        self._note(entry)
        self._apply(entry)
        self._remember(entry)
        self._wake.notify_all()

    def _note(self, entry: journal.Entry) -> None:
        self._log.add(entry)
        self._num_entries += 1

    def _apply(self, entry: journal.Entry) -> None:
        """Puts changes into the items, and marks their files to be written."""
        for change in entry.changes:
            item = self._items[change.key]
            item.set_row(change.after)
            item.revision = change.revision
            order = self._orders.setdefault(item.file, [])
            if change.before is None and change.after is not None and item.key not in order:
                order.append(item.key)
            self._latest.append(item.key)
            self._dirty.add(item.file)

    def _remember(self, entry: journal.Entry) -> None:
        """Puts a change onto the stacks of what can be taken back and made again."""
        undo, redo = (stack.setdefault(entry.by, []) for stack in (self._undo, self._redo))
        if entry.kind == journal.CHANGE:
            redo.clear()
        taken = {journal.UNDO: undo, journal.REDO: redo}.get(entry.kind)
        if taken:
            taken.pop()
        put = redo if entry.kind == journal.UNDO else undo
        put.append(entry)
        del put[:-MAX_STEPS]

    def _catch_up(self, history: journal.History) -> None:
        """Applies what the files do not hold yet, and fills the stacks."""
        behind = 0
        for number, entry in enumerate(history.entries):
            if entry.kind == journal.REFUSED:
                continue
            missing = [change for change in entry.changes if self._lacks(change, number, history)]
            behind += bool(missing)
            self._apply(dataclasses.replace(entry, changes=tuple(missing)))
            for change in entry.changes:
                if change.key in self._items:
                    item = self._items[change.key]
                    item.revision = max(item.revision, change.revision)
            if all(change.key in self._items for change in entry.changes):
                self._remember(entry)
        if behind:
            say.info(f"{behind} changes that were in the journal alone are in the data set again")

    def _lacks(self, change: journal.Change, number: int, history: journal.History) -> bool:
        """Whether a change of an entry is not in its file; makes its item where there is none."""
        file, images, _ = split_key(change.key)
        if number < history.written.get(file, 0):
            return False
        if change.key not in self._items:
            self._items[change.key] = Item(change.key, file, images)
            self._numbers[change.key] = len(self._numbers)
        return True

    def _write_on(self) -> None:
        """Writes files as long as there are changes: the thread's work."""
        while True:
            with self._wake:
                while not self._dirty and not self._is_closed:
                    self._wake.wait()
                if self._is_closed:
                    return
                file = self._dirty.pop()
                self._is_writing = True
                content, entries = self._content(file), self._num_entries
            problem = None
            try:
                write_file(self.folder / file, content)
            except OSError as error:
                problem = str(error)
            with self._wake:
                self._is_writing = False
                if problem is None:
                    self._log.mark_written(file, entries)
                else:
                    self._dirty.add(file)
                    if problem != self.write_error:
                        say.error(f"{problem}. The journal has the changes; it is tried again")
                self.write_error = problem
                self._wake.notify_all()
                if problem and not self._is_closed:
                    self._wake.wait(RETRY_S)

    def _content(self, file: str) -> bytes:
        items = (self._items[key] for key in self._orders.get(file, ()))
        return b"".join(item.line for item in items if item.row is not None)


def _bare(row: Row | None) -> Row | None:
    """Returns a row without who labelled it and when."""
    if row is None or not isinstance(about := row.get(ABOUT), dict):
        return row
    return row | {ABOUT: about.get("done")}


def _renew(row: Row | None, item: Item) -> Row | None:
    """Returns a row of before with the revision that it comes back as."""
    if row is None or not isinstance(row.get(ABOUT), dict):
        return row
    return row | {ABOUT: row[ABOUT] | {"revision": item.revision + 1}}


def make_about(by: str, revision: int, *, is_done: bool) -> Row:
    """Returns what a row says of its labelling."""
    return {"by": by, "at": now(), "revision": revision, "done": is_done}


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def next_key(file: str, images: Sequence[str], taken: Any) -> str:
    """Returns the first key of these images in a file that is not taken."""
    return next(key for key in _keys(file, images) if key not in taken)


def _keys(file: str, images: Sequence[str]) -> Iterator[str]:
    number = 0
    while True:
        yield f"{file}|{json.dumps(list(images), ensure_ascii=False)[1:-1]}|{number}"
        number += 1


def split_key(key: str) -> tuple[str, tuple[str, ...], int]:
    """Returns (file, images, number) of a key."""
    file, _, rest = key.partition("|")
    images, _, number = rest.rpartition("|")
    return file, tuple(json.loads(f"[{images}]")), int(number)


def _to_line(row: Row) -> bytes:
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def write_file(path: pathlib.Path, content: bytes) -> None:
    """Writes a file, in place of the old one, and returns when it is on the disk."""
    with atomic.new_file(path) as unfinished, open(unfinished, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    atomic.sync_folder(path.parent)

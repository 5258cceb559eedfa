"""A file or folder as a data set to label: its rows, and the images that no row names.

    data/mine/train.jsonl            the rows of this file
    data/mine/                       the rows of all its JSONL files, and images without a row
    photos/                          images: their rows are written into photos/labels.jsonl

What is kept beside the rows (journal, settings of the page, rounds of training) lies in the folder
`.labelling` of the data set.
"""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator

from paligemma_jax.data import jsonl, locations
from paligemma_jax.files import atomic
from paligemma_jax.importers import pictures
from paligemma_jax.labelling import journal, row_store

Item = row_store.Item

BESIDE, JOURNAL = ".labelling", "journal.jsonl"
NEW_ROWS = "labels.jsonl"  # of a folder's images without a row
IMAGE_KEY = "image"


@contextlib.contextmanager
def open_store(data: pathlib.Path) -> Iterator[row_store.Store]:
    """Yields the store of a file or folder, which no other process opens meanwhile.

    Raises:
      ValueError: neither rows nor images there, bad lines, or another process has it open.
    """
    folder = data if data.is_dir() else data.parent
    files = find_files(data)
    (folder / BESIDE).mkdir(exist_ok=True)
    with _claimed(folder / BESIDE):
        items, orders = read_items(folder, files)
        if data.is_dir():
            items += _without_rows(folder, items)
        if not items:
            raise ValueError(
                f"{data}: no image there ({', '.join(pictures.SUFFIXES)}) and no JSONL; a data set "
                "of another tool needs --task and --out: it is imported first"
            )
        if set(orders) <= {NEW_ROWS}:
            items.sort(key=_natural)
        log, history = journal.open_journal(folder / BESIDE / JOURNAL)
        store = row_store.Store(folder, items, orders, log, history)
        try:
            yield store
        finally:
            store.close()


def find_files(data: pathlib.Path) -> list[str]:
    """Returns the names of the JSONL files that are opened, in their order: new rows last.

    Raises:
      ValueError: no such file or folder.
    """
    if not data.is_dir():
        jsonl.check_path(str(data))
        return [data.name]
    names = (path.name for path in data.glob("*.jsonl") if path.name not in jsonl.NOT_DATA)
    return sorted(names, key=lambda name: (name == NEW_ROWS, name))


def read_items(folder: pathlib.Path, files: list[str]) -> tuple[list[Item], dict[str, list[str]]]:
    """Returns (the items of rows, file -> their keys in its order).

    Raises:
      ValueError: lines that are no rows: all of them are named.
    """
    items: dict[str, Item] = {}
    orders: dict[str, list[str]] = {}
    for file in files:
        path = str(folder / file)
        report, orders[file] = jsonl.Report(path), []
        for number, line in _lines(path):
            row, problem = jsonl.parse_line(line)
            if row is not None and not _is_images(row.get(IMAGE_KEY)):
                problem = ("wrong type", f"key '{IMAGE_KEY}': expected a path or a list of paths")
            report.add(f"{path}:{number}", [problem] if problem else [])
            if row is None or problem:
                continue
            images = _names(row.get(IMAGE_KEY))
            key = row_store.next_key(file, images, items)
            item = Item(key, file, images, row, line=line.rstrip(b"\r\n") + b"\n")
            revision = item.about.get("revision")
            item.revision = revision if isinstance(revision, int) else 0
            items[key] = item
            orders[file].append(key)
        report.raise_problems()
    return list(items.values()), orders


def find_images(folder: pathlib.Path) -> Iterator[str]:
    """Yields the images below a folder, by their names from there on; no link, nothing hidden."""
    for root, folders, names in os.walk(folder):
        depth = len(pathlib.Path(root).relative_to(folder).parts)
        hidden = depth >= pictures.MAX_DEPTH
        folders[:] = [] if hidden else sorted(one for one in folders if not one.startswith("."))
        for name in sorted(names):
            path = pathlib.Path(root, name)
            is_image = path.suffix.lower() in pictures.SUFFIXES and not name.startswith(".")
            if is_image and not path.is_symlink():
                yield path.relative_to(folder).as_posix()


def _without_rows(folder: pathlib.Path, items: list[Item]) -> list[Item]:
    """Returns an item for each image of a folder that no row names."""
    named = {locations.key(os.path.normpath(name)) for item in items for name in item.images}
    return [
        Item(row_store.next_key(NEW_ROWS, (name,), ()), NEW_ROWS, (name,))
        for name in find_images(folder)
        if locations.key(os.path.normpath(name)) not in named
    ]


@contextlib.contextmanager
def _claimed(beside: pathlib.Path) -> Iterator[None]:
    lock = None
    with contextlib.suppress(OSError, NotImplementedError):  # of a disk that knows no locks
        lock = atomic.try_lock(beside / atomic.LOCK)
        if lock is None:
            raise ValueError(
                f"{beside.parent} is being labelled by another process. Several labellers share "
                "one: open its address in another browser, with another name"
            )
    try:
        yield
    finally:
        if lock:
            lock.release()


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Yields the lines of a file; an empty one, as when every label was taken back, has none."""
    if os.path.getsize(path):
        yield from jsonl.read_lines(path)


def _is_images(value: object) -> bool:
    names = value if isinstance(value, list) else [value]
    return value is None or all(isinstance(name, str) and name for name in names)


def _names(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (str(value),)


def _natural(item: Item) -> list[tuple[int, str]]:
    """Returns what items are sorted by: 2.png before 10.png."""
    parts = re.split(r"(\d+)", " ".join(item.images))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]

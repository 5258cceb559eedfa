"""What every importer returns, and the account of what it had to leave out.

An importer never skips in silence: whatever it does not take over is dropped into a `Tally` with a
reason and the place where it stood. What cannot be read at all is a ValueError.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from paligemma_jax.data import jsonl
from paligemma_jax.data import objects as data_objects

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """An image file: on disk, or inside another file.

    Attributes:
      name: the relative path that its copy gets, unique within the data set.
      path: where it lies, or None.
      data: the file's bytes where path is None.
    """

    name: str
    path: str | None = None
    data: bytes | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """One row to be, before it is put into words.

    Attributes:
      picture: its image.
      source: where it stands, "instances.json: image 17".
      split: "train", "valid", "test" or the source's own name; None where the source has none.
      objects: of an image with annotations, else None.
      question: what is asked, for a prompt to be made of.
      prefix: the whole prompt where the source has it.
      suffix: the answer, the caption, or the suffix that the source has; None with objects only.
    """

    picture: Picture
    source: str
    split: str | None = None
    objects: data_objects.Objects | None = None
    question: str | None = None
    prefix: str | None = None
    suffix: str | None = None


@dataclasses.dataclass(frozen=True)
class DataSet:
    """What a source holds.

    Attributes:
      classes: names in the order of the source; () where there are none.
      examples: to go through once; images inside other files are read while going.
      total: how many examples there are at most.
    """

    classes: tuple[str, ...]
    examples: Iterable[Example]
    total: int


@dataclasses.dataclass(frozen=True)
class Request:
    """What to read, and what the files cannot say themselves.

    Attributes:
      path: file or folder.
      task: what rows will be made for; a format with several kinds of files chooses by it.
      images: folder of the images where it is not found by looking.
      classes: class names where the source has numbers only.
      columns: our names for columns -> the source's: {"question": "q"}.
      components: a mask's connected pieces are objects of their own.
    """

    path: str
    task: str
    images: str | None = None
    classes: tuple[str, ...] = ()
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    components: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Drop:
    """Something left out: what ("image", "object", "outline", "row"), why, where, and details."""

    what: str
    reason: str
    source: str
    detail: str


class Tally:
    """Counts what was read, what was changed, and names everything that was dropped."""

    def __init__(self):
        self.read: collections.Counter[str] = collections.Counter()
        self.changed: collections.Counter[str] = collections.Counter()
        self.drops: list[Drop] = []

    def drop(self, what: str, reason: str, source: str, detail: Any = "") -> None:
        self.drops.append(Drop(what, reason, source, str(detail)))

    def count_drops(self) -> dict[str, dict[str, int]]:
        """Returns {what: {reason: count}}, the most frequent first."""
        counts = collections.Counter((drop.what, drop.reason) for drop in self.drops)
        found: dict[str, dict[str, int]] = {}
        for (what, reason), count in counts.most_common():
            found.setdefault(what, {})[reason] = count
        return found


SPLITS = {"train": "train", "val": "valid", "test": "test"}


def split_name(name: str) -> str | None:
    """Returns train, valid or test if a file's or folder's name holds one of them, else None."""
    lowered = name.lower()
    found = {split for word, split in SPLITS.items() if word in lowered}
    return found.pop() if len(found) == 1 else None


def is_split_name(name: str) -> bool:
    """Whether a split can be a file's name, and is not that of another file."""
    taken = (jsonl.DROPPED, jsonl.MASK_ROUND_TRIP)
    return bool(re.fullmatch(r"\w[\w.-]{0,60}", name)) and f"{name}.jsonl" not in taken


def read_lines(path: str) -> list[str]:
    """Returns the lines of a list of names, or raises a ValueError if it is not UTF-8."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read().splitlines()
    except UnicodeDecodeError as error:
        found = f"byte {error.object[error.start]:#04x}"
        raise ValueError(f"{path}: {found} is not UTF-8; save the file as UTF-8") from error


def clean_name(name: Any) -> str:
    """Returns a class name with single spaces; one that is no text or empty is ""."""
    return " ".join(name.split()) if is_text(name) else ""


def is_text(value: Any) -> bool:
    """Whether a value is text that UTF-8 can hold: JSON and file names can have half characters."""
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:
        return False

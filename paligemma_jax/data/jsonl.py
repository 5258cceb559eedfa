"""JSONL files line by line, with every bad line named: what reading and importing share.

What else is given in their place is recognized, and what their keys are called elsewhere.
"""

import collections
import json
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from paligemma_jax.data import locations
from paligemma_jax.tasks import definition, task
from paligemma_jax.wording import phrases

MAX_LISTED = 20
MAX_MESSAGES = 1000  # of a kind that are told apart
CORRECT = "correct or remove these lines: a file is read whole or not at all"

# What an import writes beside the files of its splits.
DROPPED, MASK_ROUND_TRIP = "dropped.jsonl", "mask_round_trip.jsonl"


def read_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Yields (number, line), without a byte order mark and the blank lines at the end.

    Raises:
      ValueError: an empty file, UTF-16, a Git LFS pointer or a web page.
    """
    is_empty, blank = True, []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                if description := locations.describe_head(line):
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


def parse_line(line: bytes) -> tuple[dict[str, Any] | None, locations.Problem | None]:
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

    def add(self, source: str, problems: Sequence[locations.Problem]) -> None:
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


# A path that should be a JSONL file and is none: what it is, and the command that helps.

EXPECTED = "expected JSONL, one JSON object per line"
IMPORT = "Import it:"
ENDING = ".jsonl"
# Files beside imported data that are none themselves.
NOT_DATA = (DROPPED, MASK_ROUND_TRIP)
COCO_KEYS = {"images", "annotations"}
# What a row's key may be for us: names of `COLUMN_ALIASES`.
ROLES = {
    "image": ("image",),
    "prefix": ("prefix", "question"),
    "suffix": ("suffix", "answer", "caption"),
}


def check_path(path: str) -> None:
    """Raises a ValueError that says what to do if there is no such file, or it is not JSONL."""
    if locations.is_address(path):
        raise ValueError(
            f"{path}: a JSONL file is read from this machine: download it. Its images may stay "
            f"where they are: set input.data.image_dir={os.path.dirname(path)}"
        )
    if os.path.isdir(path):
        other = "" if _data_files(path) else f". Another format? {suggest_import(path)}"
        raise ValueError(f"{path} is a folder, {EXPECTED}; {_list_data(path)}{other}")
    if not os.path.isfile(path):
        raise ValueError(f"{path}: no such file{_near_miss(path)}")
    ending = os.path.splitext(path)[1].lower()
    meant = [name for name, (_, rule) in task.imports().items() if ending in rule.endings]
    if meant:
        raise ValueError(f"{path}: {EXPECTED}. {suggest_import(path, meant[0])}")
    _check_is_lines(path)


def propose_names(
    path: str, keys: Iterable[str], *, missing: Sequence[str], unknown: Sequence[str]
) -> str:
    """Returns what to do about a file whose rows have other keys than ours.

    Args:
      path: the file.
      keys: of its rows.
      missing: which of image, prefix, suffix they lack.
      unknown: keys that the prefix template names and they lack.
    """
    keys, settings = list(keys), []
    for ours in missing:
        likely = (find_column(role, keys) for role in ROLES[ours])
        if key := next(filter(None, likely), None):
            settings.append(f"input.data.fields.{ours}={shlex.quote(key)}")
        elif ours == "prefix":
            settings.append("input.data.prefix_template='caption en' (one prompt for all)")
        elif ours == "suffix" and find_column("objects", keys):
            return suggest_import(path)
        else:
            settings.append(f"input.data.fields.{ours}=KEY")
    if unknown:
        settings.append(f"an input.data.prefix_template without {', '.join(unknown)}")
    return f"say which keys hold these: set {', '.join(settings)}"


def suggest_rewriting(path: str) -> str:
    """Returns the command that writes anew what can be read of a file's suffixes."""
    command = suggest_import(path).removeprefix(IMPORT)
    return f"Or have what can be read written anew:{command}"


def suggest_import(path: str, task_name: str | None = None) -> str:
    """Returns the command that makes JSONL of a data set in another format.

    `task_name` None: the first one that objects are for.
    """
    task_name = task_name or _first_of(definition.OBJECTS)
    target = f"{os.path.splitext(path.rstrip(os.sep))[0]}_jsonl"
    words = f"{shlex.quote(path)} {shlex.quote(target)} --task {task_name}"
    return f"{IMPORT} python -m paligemma_jax.import_data {words} (or another task)"


def _near_miss(path: str) -> str:
    """Returns what to add to "no such file": the nearest name, and what else is there."""
    folder, name = os.path.split(os.path.abspath(path))
    if os.path.isdir(folder):
        hint = _did_you_mean(name, _data_files(folder), folder)
        return f"{hint or ';'} {_list_data(locations.as_typed(folder))}"
    while not os.path.isdir(folder):
        folder, name = os.path.split(folder)
    inside = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    hint = _did_you_mean(name, inside, folder)
    return f"; there is no folder {locations.as_typed(os.path.join(folder, name))}{hint}"


def _did_you_mean(name: str, known: list[str], folder: str) -> str:
    stems = {name.removesuffix(ENDING): name for name in known}
    near = phrases.guess(name.removesuffix(ENDING), stems)
    if near is None:
        return ""
    return f"; did you mean {locations.as_typed(os.path.join(folder, stems[near]))}?"


def _data_files(folder: str) -> list[str]:
    return [n for n in sorted(os.listdir(folder)) if n.endswith(ENDING) and n not in NOT_DATA]


def _list_data(folder: str) -> str:
    files = _data_files(folder)
    more = f" and {len(files) - MAX_LISTED} more" if len(files) > MAX_LISTED else ""
    return f"JSONL files in {folder}: {', '.join(files[:MAX_LISTED]) or 'none'}{more}"


def _check_is_lines(path: str) -> None:
    """Raises a ValueError if a file is one JSON document instead of one per line."""
    _, first = next(read_lines(path))
    row, _ = parse_line(first)
    is_begun = row is None and first.lstrip().startswith((b"{", b"["))
    whole = _read_document(path) if is_begun else row
    if isinstance(whole, list):
        target = f"{os.path.splitext(path)[0]}_rows.jsonl"
        raise ValueError(
            f"{path} is one JSON list, {EXPECTED}. Write each member in a line of its own: "
            f"jq -c '.[]' {shlex.quote(path)} > {shlex.quote(target)}"
        )
    if isinstance(whole, dict) and whole.keys() >= COCO_KEYS:
        command = suggest_import(path, _task_of(whole["annotations"]))
        raise ValueError(f"{path} is COCO's JSON, {EXPECTED}. {command}")
    if row is None and whole is not None:
        raise ValueError(
            f"{path} is one JSON object over several lines, {EXPECTED}: write each row in one line"
        )


def _read_document(path: str) -> Any:
    """Returns what a file holds as one JSON document; None if it does not."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file)
    except (ValueError, RecursionError):
        return None  # the list of bad lines says more


def _task_of(annotations: Any) -> str:
    """Returns what COCO's annotations are for."""
    first = next(iter(annotations), None) if isinstance(annotations, list) else None
    has_captions = isinstance(first, dict) and "caption" in first
    return _first_of(definition.CAPTIONS if has_captions else definition.OBJECTS)


def _first_of(source: str) -> str:
    """Returns the first value of --task whose rows are made of such a source."""
    return next(name for name, (_, rule) in task.imports().items() if rule.source == source)


# What the columns of a data set, or the keys of its rows, are called elsewhere.

# Our name -> what the column may be called.
COLUMN_ALIASES = {
    "image": (
        "image",
        "images",
        "image_path",
        "image_name",
        "file_name",
        "filename",
        "file",
        "path",
        "img",
    ),
    "prefix": ("prefix",),
    "suffix": ("suffix",),
    "question": ("question", "query", "prompt"),
    "answer": ("answer", "response", "output", "multiple_choice_answer", "label", "answers"),
    "caption": ("caption", "captions", "text", "description", "title", "comment"),
    "objects": ("objects",),
    "split": ("split",),
}


def find_column(ours: str, columns: Iterable[str]) -> str | None:
    """Returns which of the columns is likely ours, whatever its case; None if none is."""
    lowered = {name.strip().lower(): name for name in columns}
    return next((lowered[alias] for alias in COLUMN_ALIASES[ours] if alias in lowered), None)

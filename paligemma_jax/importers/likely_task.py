"""What a data set of another tool is most likely for: the value of `--task` that nobody gave."""

import glob
import itertools
import mmap
import os

from paligemma_jax.data import jsonl
from paligemma_jax.importers import arrow, conversations, example, formats, tables
from paligemma_jax.tasks import definition, task

OBJECTS, QUESTIONS, CAPTIONS = definition.OBJECTS, definition.QUESTIONS, definition.CAPTIONS
HINT = f"say what answers are: --task {', '.join(task.imports())}"


def find(path: str) -> tuple[str, str]:
    """Returns (a value of `--task`, what shows it).

    Raises:
      ValueError: nothing there that is known, or columns that tell of no task.
    """
    shown = formats.detect_all(path)
    name = next(iter(shown), None)
    if name is None:
        formats.choose(path, _first(OBJECTS))  # says what there is instead
        raise AssertionError("choose raises where nothing is known")
    if name == "masks":
        return _first(OBJECTS, "masks"), "masks"
    if name == "coco":
        return _of_coco(shown[name])
    if formats.FORMATS[name].sources == (OBJECTS,):
        return _first(OBJECTS), f"{name} has objects"
    return _of_columns(path, name, shown[name])


def _of_coco(file: str) -> tuple[str, str]:
    """Returns what COCO's annotations are for: captions only where no file has boxes."""
    beside = [file, *glob.glob(os.path.join(glob.escape(os.path.dirname(file)), "*.json"))]
    if not any(_holds(one, b'"bbox"') for one in beside) and _holds(file, b'"caption"'):
        return _first(CAPTIONS), "COCO's annotations are captions"
    return _first(OBJECTS), "COCO's annotations are objects"


def _holds(file: str, word: bytes) -> bool:
    """Whether a word is in a file, which may be large."""
    if not os.path.getsize(file):
        return False
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return text.find(word) >= 0


def _of_columns(path: str, name: str, file: str) -> tuple[str, str]:
    """Returns what columns are for: objects, questions with answers, or captions."""
    names, samples = _columns(name, file)
    have = {ours: jsonl.find_column(ours, names) for ours in jsonl.COLUMN_ALIASES}
    if have["suffix"] and have["prefix"]:
        rows = [row for row in samples if row]
        prompts, answers = (
            [str(row.get(have[ours]) or "") for row in rows] for ours in ("prefix", "suffix")
        )
        trained = task.likely(prompts, answers)
        chosen = next(value for value, (one, _) in task.imports().items() if one.name == trained)
        return chosen, f"its suffixes are of {trained}"
    if have["objects"]:
        return _first(OBJECTS), f"column '{have['objects']}'"
    if any(key in names for key in conversations.TURNS):
        return _first(QUESTIONS), "conversations"
    if have["question"] and have["answer"]:
        return _first(QUESTIONS), f"columns '{have['question']}' and '{have['answer']}'"
    if have["caption"]:
        return _first(CAPTIONS), f"column '{have['caption']}'"
    raise ValueError(f"{path}: columns {names[:20]} tell of no task: {HINT}")


def _columns(name: str, file: str) -> tuple[list[str], list[dict]]:
    """Returns (names of the columns, the first rows where they are lines)."""
    if name == "parquet":
        return arrow.column_names(file), []
    if name == "csv":
        return tables.header(file), []
    rows = [row for _, row in itertools.islice(tables.jsonl_rows(file, example.Tally()), 100)]
    return list(rows[0]) if rows else [], rows


def _first(source: str, answer: str | None = None) -> str:
    """Returns the first value of `--task` whose rows are made of such a source."""
    rules = {name: rule for name, (_, rule) in task.imports().items() if rule.source == source}
    return next(name for name, rule in rules.items() if answer in (None, rule.answer))

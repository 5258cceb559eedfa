"""A path that should be a JSONL file and is none: what it is, and the command that helps."""

import json
import os
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from paligemma_jax.data import column_names, image_folder, jsonl, remote
from paligemma_jax.tasks import definition, task
from paligemma_jax.wording import phrases

MAX_LISTED = 20
EXPECTED = "expected JSONL, one JSON object per line"
IMPORT = "Import it:"
ENDING = ".jsonl"
# Files beside imported data that are none themselves.
NOT_DATA = (jsonl.DROPPED, jsonl.MASK_ROUND_TRIP)
COCO_KEYS = {"images", "annotations"}
# What a row's key may be for us: names of `column_names`.
ROLES = {
    "image": ("image",),
    "prefix": ("prefix", "question"),
    "suffix": ("suffix", "answer", "caption"),
}


def check(path: str) -> None:
    """Raises a ValueError that says what to do if there is no such file, or it is not JSONL."""
    if remote.is_address(path):
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
        likely = (column_names.find(role, keys) for role in ROLES[ours])
        if key := next(filter(None, likely), None):
            settings.append(f"input.data.fields.{ours}={shlex.quote(key)}")
        elif ours == "prefix":
            settings.append("input.data.prefix_template='caption en' (one prompt for all)")
        elif ours == "suffix" and column_names.find("objects", keys):
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
        return f"{hint or ';'} {_list_data(image_folder.as_typed(folder))}"
    while not os.path.isdir(folder):
        folder, name = os.path.split(folder)
    inside = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    hint = _did_you_mean(name, inside, folder)
    return f"; there is no folder {image_folder.as_typed(os.path.join(folder, name))}{hint}"


def _did_you_mean(name: str, known: list[str], folder: str) -> str:
    stems = {name.removesuffix(ENDING): name for name in known}
    near = phrases.guess(name.removesuffix(ENDING), stems)
    if near is None:
        return ""
    return f"; did you mean {image_folder.as_typed(os.path.join(folder, stems[near]))}?"


def _data_files(folder: str) -> list[str]:
    return [n for n in sorted(os.listdir(folder)) if n.endswith(ENDING) and n not in NOT_DATA]


def _list_data(folder: str) -> str:
    files = _data_files(folder)
    more = f" and {len(files) - MAX_LISTED} more" if len(files) > MAX_LISTED else ""
    return f"JSONL files in {folder}: {', '.join(files[:MAX_LISTED]) or 'none'}{more}"


def _check_is_lines(path: str) -> None:
    """Raises a ValueError if a file is one JSON document instead of one per line."""
    _, first = next(jsonl.read_lines(path))
    row, _ = jsonl.parse_line(first)
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

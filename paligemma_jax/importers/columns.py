"""Rows with named columns, whatever file they come from: which column is what, and an example."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from paligemma_jax.data import column_names
from paligemma_jax.data import objects as data_objects
from paligemma_jax.importers import collect, example, nested, pictures

OURS = ("image", "prefix", "suffix")  # of rows that are taken as they are
# What a row must have, by task, where it has no suffix.
NEEDED = {
    "vqa": ("image", "question", "answer"),
    "caption": ("image", "caption"),
    "detection": ("image", "objects"),
    "segmentation": ("image", "objects"),
    "counting": ("image", "objects"),
}


def choose(
    found: Iterable[str], request: example.Request, where: str, *, columns: Mapping[str, str]
) -> dict[str, str]:
    """Returns our name -> the source's, of the columns that make a row of the task.

    Args:
      found: the source's columns.
      request: its task says which are needed.
      where: the file, for errors.
      columns: what the user says; one that is not there is an error.

    Raises:
      ValueError: a column that the task needs is missing.
    """
    found = list(found)
    chosen = {}
    for ours in column_names.ALIASES:
        if ours in columns:
            if columns[ours] not in found:
                raise ValueError(f"{where}: no column '{columns[ours]}'; found {found[:20]}")
            chosen[ours] = columns[ours]
        elif name := column_names.find(ours, found):
            chosen[ours] = name
    is_ours = {"image", "suffix"} <= set(chosen)
    needed = OURS if is_ours else NEEDED[request.task]
    if not is_ours and (missing := [name for name in needed if name not in chosen]):
        raise ValueError(
            f"{where}: no column for {', '.join(missing)}, nor suffix; found {found[:20]}. "
            f"Name it: --columns {missing[0]}=..."
        )
    return {name: chosen[name] for name in (*needed, "split") if name in chosen}


def make(
    row: Mapping[str, Any],
    chosen: Mapping[str, str],
    picture: example.Picture,
    source: str,
    split: str | None,
    tally: example.Tally,
    *,
    names: Sequence[str] = (),
) -> example.Example | None:
    """Returns the example of a row, or drops the row.

    Args:
      row: the row. chosen: from `choose`.
      picture, source, split: of the example; a column of splits goes before.
      tally: gets what is dropped.
      names: of the classes, where objects have numbers.
    """
    if (size := pictures.measure(picture, source, tally)) is None:
        return None
    named = row.get(chosen["split"]) if "split" in chosen else None
    if isinstance(named, str) and named.strip():
        split = example.split_name(named) or named.strip()
        if not example.is_split_name(split):
            tally.drop("row", "split that is no name for a file", source, f"'{named:.60}'")
            return None
    if "objects" in chosen:
        value = row.get(chosen["objects"])
        return _with_objects(value, picture, size, source, split, tally, names)
    texts = {}
    for ours in ("prefix", "suffix", "question", "answer", "caption"):
        if ours not in chosen:
            continue
        value = row.get(chosen[ours])
        if type(value) in (int, float):
            value = str(value)
        if not example.is_text(value):
            detail = f"column '{chosen[ours]}': expected text, found {value!r:.60}"
            tally.drop("row", "column without text", source, detail)
            return None
        texts[ours] = value
    if "suffix" in chosen:
        objects = None
        if row.get("objects") is not None:
            try:
                objects = data_objects.from_row(row)
            except ValueError as error:
                tally.drop("row", "bad objects", source, error)
                return None
        texts.setdefault("prefix", "")
        return example.Example(picture, source, split, objects, None, **texts)
    answer = texts.get("caption", texts.get("answer", ""))
    return example.Example(picture, source, split, None, texts.get("question"), None, answer)


def _with_objects(
    value: Any,
    picture: example.Picture,
    size: tuple[int, int],
    source: str,
    split: str | None,
    tally: example.Tally,
    names: Sequence[str],
) -> example.Example | None:
    try:
        annotations = nested.annotations(value, names, source)
    except ValueError as error:
        tally.drop("row", "bad objects", source, error)
        return None
    objects = collect.collect(annotations, size, tally)
    if objects is None:
        tally.drop("image", "none of its objects could be kept", source, picture.name)
        return None
    return example.Example(picture, source, split, objects)


def split_of(path: str) -> str | None:
    """Returns the split that a file's own name tells."""
    return example.split_name(os.path.basename(path))

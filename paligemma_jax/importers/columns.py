"""Rows with named columns, whatever file they come from: which column is what, and an example.

A column "objects" holds {"bbox": [[x, y, width, height], ...], "category": [0, ...]} or a list of
such pairs, in pixels as COCO has them, as Hugging Face's object detection data sets and ImageFolder
have it. Categories are names, or numbers that the column's description or the user names. Source:
https://huggingface.co/docs/datasets/object_detection

A cell may list several answers or captions: the commonest, else the first, is the suffix, and all
are the row's key "answers". Keys that scores read are kept.
"""

import collections
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from paligemma_jax.data import jsonl
from paligemma_jax.data import objects as data_objects
from paligemma_jax.importers import example, pictures
from paligemma_jax.tasks import metrics, text_metrics

SEVERAL = ("suffix", "answer", "caption")  # what a cell may hold several of
OURS = ("image", "prefix", "suffix")  # of rows that are taken as they are
BOXES = ("bbox", "bboxes")
ANSWERS = text_metrics.ANSWERS
# Of a row, what scores read beside its suffix.
SCORE_KEYS = {
    ANSWERS,
    *(key for metric in metrics.METRICS.values() for key in (*metric.needs, *metric.groups)),
}
CATEGORIES = ("category", "categories", "category_id", "label", "labels")


def choose(
    names: Iterable[str], request: example.Request, where: str, *, columns: Mapping[str, str]
) -> dict[str, str]:
    """Returns our name -> the source's, of the columns that make a row of the task.

    Args:
      names: the source's columns.
      request: its task says which are needed.
      where: the file, for errors.
      columns: what the user says; one that is not there is an error.

    Raises:
      ValueError: a column that the task needs is missing.
    """
    names = list(names)
    chosen = {}
    for ours in jsonl.COLUMN_ALIASES:
        if ours in columns:
            if columns[ours] not in names:
                raise ValueError(f"{where}: no column '{columns[ours]}'; found {names[:20]}")
            chosen[ours] = columns[ours]
        elif name := jsonl.find_column(ours, names):
            chosen[ours] = name
    is_ours = {"image", "suffix"} <= set(chosen)
    needed = OURS if is_ours else request.rule.columns
    if not is_ours and (missing := [name for name in needed if name not in chosen]):
        raise ValueError(
            f"{where}: no column for {', '.join(missing)}, nor suffix; found {names[:20]}. "
            f"Name it: --columns {missing[0]}=..."
        )
    return {name: chosen[name] for name in (*needed, "split") if name in chosen}


def describe_search(chosen: Mapping[str, str], files: str) -> str:
    """Returns where labels or answers are looked for, for `example.DataSet`."""
    names = ("objects",) if "objects" in chosen else ("suffix", "answer", "caption")
    held = " and ".join(f"'{chosen[name]}'" for name in names if name in chosen)
    return f"column {held} of {files}"


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
    if (texts := _texts(row, chosen, source, tally)) is None:
        return None
    extra = _extra(row, chosen, source, tally)
    if "suffix" not in chosen:
        answer = texts.get("caption", texts.get("answer", ""))
        question = texts.get("question")
        return example.Example(picture, source, split, None, question, None, answer, extra)
    objects = None
    if row.get("objects") is not None:
        try:
            objects = data_objects.from_row(row)
        except ValueError as error:
            tally.drop("object list", "bad objects", source, error)
    # Without a column of prompts, as big_vision's Colab has captions, they are the template's.
    prefix, suffix = texts.get("prefix"), texts["suffix"]
    return example.Example(picture, source, split, objects, None, prefix, suffix, extra)


def _texts(
    row: Mapping[str, Any], chosen: Mapping[str, str], source: str, tally: example.Tally
) -> dict[str, str] | None:
    """Returns {our name: text} of the columns that hold texts, or drops the row."""
    texts = {}
    for ours in ("prefix", "suffix", "question", "answer", "caption"):
        if ours not in chosen:
            continue
        value = row.get(chosen[ours])
        if ours in SEVERAL and (listed := list_answers(value)):
            value = collections.Counter(listed).most_common(1)[0][0]
        if type(value) in (int, float):
            value = str(value)
        if not example.is_text(value):
            detail = f"column '{chosen[ours]}': expected text, found {value!r:.60}"
            tally.drop("row", "column without text", source, detail)
            return None
        texts[ours] = value
    return texts


def only_image(value: Any) -> Any:
    """Returns the one image of a list of images, as tools write it that allow several."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def list_answers(value: Any) -> list[str] | None:
    """Returns the texts of a list of answers, each a text or {"answer": text}; None if it is none.

    Lists of no text at all are none either.
    """
    if not isinstance(value, list) or not value:
        return None
    texts = [one.get("answer") if isinstance(one, dict) else one for one in value]
    texts = [str(one) if type(one) in (int, float) else one for one in texts]
    good = [one for one in texts if isinstance(one, str) and example.is_text(one) and one.strip()]
    return good if len(good) == len(texts) else None


def _extra(
    row: Mapping[str, Any], chosen: Mapping[str, str], source: str, tally: example.Tally
) -> dict[str, Any]:
    """Returns the keys of a row that scores read, and all answers where a cell lists several."""
    extra = {key: row[key] for key in sorted(SCORE_KEYS - {ANSWERS}) if row.get(key) is not None}
    listed = next((row.get(chosen[ours]) for ours in SEVERAL if ours in chosen), None)
    listed = listed if isinstance(listed, list) else row.get(ANSWERS)
    if listed is None or listed == []:
        return extra
    if answers := list_answers(listed):
        return extra | {ANSWERS: answers}
    tally.drop("key", f"'{ANSWERS}' is no list of texts", source, f"found {listed!r:.60}")
    return extra


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
        annotations = read_objects(value, names, source)
    except ValueError as error:
        tally.drop("row", "bad objects", source, error)
        return None
    objects = example.collect_objects(annotations, size, tally)
    if objects is None:
        tally.drop("image", "none of its objects could be kept", source, picture.name)
        return None
    return example.Example(picture, source, split, objects)


def split_of(path: str) -> str | None:
    """Returns the split that a file's own name tells."""
    return example.split_name(os.path.basename(path))


def read_objects(value: Any, names: Sequence[str], source: str) -> list[example.Annotation]:
    """Returns the objects of a column "objects"; a wrong one shows when objects are collected.

    Raises:
      ValueError: no such structure.
    """
    annotations = []
    for number, (box, category) in enumerate(_pairs(value), 1):
        where = f"{source}: object {number}"
        label = example.clean_name(category)
        if type(category) is int:
            label = names[category] if 0 <= category < len(names) else ""
            where = where if label else f"{where}: category {category} of {len(names)} names"
        annotations.append(example.Annotation(label, where, example.from_size(box)))
    return annotations


def class_names(values: Iterable[Any]) -> list[str]:
    """Returns the names among the categories of many rows, in order of their first use."""
    names: dict[str, None] = {}
    for value in values:
        try:
            names |= {example.clean_name(category): None for _, category in _pairs(value)}
        except ValueError:
            continue  # named when its row is read
    return [name for name in names if name]


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    """Returns (box, category) of every object."""
    items = value if isinstance(value, list) else [value]
    pairs: list[tuple[Any, Any]] = []
    for item in items:
        keys = item.keys() if isinstance(item, dict) else ()
        boxes = next((key for key in BOXES if key in keys), None)
        categories = next((key for key in CATEGORIES if key in keys), None)
        if boxes is None or categories is None:
            raise ValueError(f"expected {{'bbox': ..., 'category': ...}}, found {item!r:.80}")
        if isinstance(value, list):
            pairs.append((item[boxes], item[categories]))
            continue
        columns = item[boxes] or [], item[categories] or []
        if not all(isinstance(column, list) for column in columns):
            raise ValueError(f"expected lists of boxes and categories, found {item!r:.80}")
        if len(columns[0]) != len(columns[1]):
            raise ValueError(f"{len(columns[0])} boxes, but {len(columns[1])} categories")
        pairs += zip(*columns, strict=True)
    return pairs

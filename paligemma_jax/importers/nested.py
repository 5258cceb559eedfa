"""Objects inside a row, as Hugging Face's object detection data sets and ImageFolder have them.

A column "objects" holds {"bbox": [[x, y, width, height], ...], "category": [0, ...]} or a list of
such pairs, in pixels as COCO has them. Categories are names, or numbers that the column's
description or the user names. Source: https://huggingface.co/docs/datasets/object_detection
"""

from collections.abc import Iterable, Sequence
from typing import Any

from paligemma_jax.importers import collect, example

BOXES = ("bbox", "bboxes")
CATEGORIES = ("category", "categories", "category_id", "label", "labels")


def annotations(value: Any, names: Sequence[str], source: str) -> list[collect.Annotation]:
    """Returns the objects of a row; what is wrong with one is found when it is collected.

    Raises:
      ValueError: no such structure.
    """
    found = []
    for number, (box, category) in enumerate(_pairs(value), 1):
        where = f"{source}: object {number}"
        label = example.clean_name(category)
        if type(category) is int:
            label = names[category] if 0 <= category < len(names) else ""
            where = where if label else f"{where}: category {category} of {len(names)} names"
        if isinstance(box, list) and len(box) == 4 and all(type(x) in (int, float) for x in box):
            box = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
        found.append(collect.Annotation(label, where, box))
    return found


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

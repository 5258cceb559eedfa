"""The formats of data sets that can be read, and which of them a path holds."""

import dataclasses
import os
from collections.abc import Callable

from paligemma_jax.importers import (
    arrow,
    box_tables,
    coco,
    cvat,
    example,
    labelme,
    masks,
    tables,
    voc,
    yolo,
)
from paligemma_jax.tasks import definition, task

OBJECTS, CAPTIONS = definition.OBJECTS, definition.CAPTIONS
ANYTHING = (OBJECTS, definition.QUESTIONS, CAPTIONS)


@dataclasses.dataclass(frozen=True)
class Format:
    """How a format is known and read.

    Attributes:
      detect: path -> the file that shows it, or None.
      read: (request, tally, progress) -> DataSet.
      sources: what it may hold, see `definition.Import`.
      options: of `example.Request`, those that this format alone or few know.
    """

    detect: Callable[[str], str | None]
    read: Callable[[example.Request, example.Tally, example.Progress], example.DataSet]
    sources: tuple[str, ...]
    options: tuple[str, ...] = ()

    def tasks(self) -> list[str]:
        """Returns what its rows can be made for."""
        return [name for name, (_, rule) in task.imports().items() if rule.source in self.sources]


# The first one that fits wins: a VOC folder may hold masks, a folder of masks a CSV of notes.
FORMATS = {
    "coco": Format(coco.detect, coco.read, (OBJECTS, CAPTIONS)),
    "yolo": Format(yolo.detect, yolo.read, (OBJECTS,), ("first_class",)),
    "jsonl": Format(tables.detect_jsonl, tables.read_jsonl, ANYTHING, ("first_class",)),
    "labelme": Format(labelme.detect, labelme.read, (OBJECTS,)),
    "cvat": Format(cvat.detect, cvat.read, (OBJECTS,)),
    "voc": Format(voc.detect, voc.read, (OBJECTS,)),
    "parquet": Format(arrow.detect, arrow.read, ANYTHING, ("first_class",)),
    "masks": Format(
        masks.detect,
        masks.read,
        (OBJECTS,),
        ("components", "masks", "min_area", "drop_wedges", "first_class"),
    ),
    "box_csv": Format(box_tables.detect, box_tables.read, (OBJECTS,)),
    "csv": Format(tables.detect_csv, tables.read_csv, ANYTHING, ("first_class",)),
}


def detect_all(path: str) -> dict[str, str]:
    """Returns {name of a format: the file that shows it} for all that a path could be."""
    return {key: shown for key, fmt in FORMATS.items() if (shown := fmt.detect(path))}


def choose(path: str, task_name: str, given: str | None = None) -> tuple[str, str]:
    """Returns (name of the format, why it is taken for it).

    Args:
      path: file or folder.
      task_name: what rows will be made for, as `--task` calls it.
      given: the format that the user says it is; None is to look.

    Raises:
      ValueError: nothing there, nothing known, or a format that knows nothing of the task.
    """
    if not os.path.exists(path):
        raise ValueError(f"SRC {path}: no such file or folder")
    name, reason = given, "as --format says"
    source = task.rule(task_name).source
    if name is None:
        seen = detect_all(path)
        fitting = [key for key in seen if source in FORMATS[key].sources]
        name = next(iter(fitting), next(iter(seen), None))
        if name is None:
            held = ", ".join(sorted(os.listdir(path))[:8]) if os.path.isdir(path) else "one file"
            raise ValueError(
                f"SRC {path}: no data set of a known format ({', '.join(FORMATS)}); found "
                f"{held or 'nothing'}. Force one: --format coco"
            )
        reason = os.path.relpath(seen[name], path) if os.path.isdir(path) else "its ending"
        others = [f"{key} ({os.path.relpath(seen[key], path)})" for key in fitting if key != name]
        reason += f"; could also be {', '.join(others)}: --format chooses" if others else ""
    if source not in FORMATS[name].sources:
        lacking = OBJECTS if source == OBJECTS else "texts"
        raise ValueError(
            f"SRC {path} is {name}, which has no {lacking} for --task {task_name}; it gives "
            f"{', '.join(FORMATS[name].tasks())}"
        )
    return name, reason


def check_options(name: str, request: example.Request) -> None:
    """Raises a ValueError for an option that this format would ignore."""
    special = dict.fromkeys(option for one in FORMATS.values() for option in one.options)
    for option in special:
        is_set = getattr(request, option) not in (None, False, 0) or (
            option == "first_class" and request.first_class is not None
        )
        if is_set and option not in FORMATS[name].options:
            known = [key for key, one in FORMATS.items() if option in one.options]
            raise ValueError(f"--{option} is for {', '.join(known)}, and {request.path} is {name}")

"""The formats of data sets that can be read, and which of them a path holds."""

import dataclasses
import os
from collections.abc import Callable

from paligemma_jax.importers import arrow, coco, example, masks, tables, voc, yolo

OBJECTS = ("detection", "segmentation", "counting")
TEXTS = ("vqa", "caption")
TASKS = (*OBJECTS, *TEXTS)


@dataclasses.dataclass(frozen=True)
class Format:
    """How a format is known and read.

    Attributes:
      detect: path -> the file that shows it, or None.
      read: (request, tally, progress) -> DataSet.
      tasks: what its rows can be made for.
    """

    detect: Callable[[str], str | None]
    read: Callable[[example.Request, example.Tally, example.Progress], example.DataSet]
    tasks: tuple[str, ...]


# The first one that fits wins: a VOC folder may hold masks, a folder of masks a CSV of notes.
FORMATS = {
    "coco": Format(coco.detect, coco.read, (*OBJECTS, "caption")),
    "yolo": Format(yolo.detect, yolo.read, OBJECTS),
    "jsonl": Format(tables.detect_jsonl, tables.read_jsonl, TASKS),
    "voc": Format(voc.detect, voc.read, OBJECTS),
    "parquet": Format(arrow.detect, arrow.read, TASKS),
    "masks": Format(masks.detect, masks.read, OBJECTS),
    "csv": Format(tables.detect_csv, tables.read_csv, TASKS),
}


def detect_all(path: str) -> dict[str, str]:
    """Returns {name of a format: the file that shows it} for all that a path could be."""
    return {key: shown for key, fmt in FORMATS.items() if (shown := fmt.detect(path))}


def choose(path: str, task: str, given: str | None = None) -> tuple[str, str]:
    """Returns (name of the format, why it is taken for it).

    Args:
      path: file or folder.
      task: what rows will be made for.
      given: the format that the user says it is; None is to look.

    Raises:
      ValueError: nothing there, nothing known, or a format that knows nothing of the task.
    """
    if not os.path.exists(path):
        raise ValueError(f"SRC {path}: no such file or folder")
    name, reason = given, "as --format says"
    if name is None:
        seen = detect_all(path)
        fitting = [key for key in seen if task in FORMATS[key].tasks]
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
    if task not in FORMATS[name].tasks:
        raise ValueError(
            f"SRC {path} is {name}, which has no {'texts' if task in TEXTS else 'objects'} for "
            f"--task {task}; it gives {', '.join(FORMATS[name].tasks)}"
        )
    return name, reason

"""The formats of data sets that can be read, and which of them a path holds."""

import dataclasses
import itertools
import os
from collections.abc import Callable

from paligemma_jax.data import locations
from paligemma_jax.importers import (
    arrow,
    box_tables,
    coco,
    cvat,
    example,
    labelme,
    masks,
    source_files,
    tables,
    voc,
    yolo,
)
from paligemma_jax.tasks import definition, task

OBJECTS, CAPTIONS = definition.OBJECTS, definition.CAPTIONS
MAX_DESCRIBED, MAX_BELOW = 200, 20  # files and folders that are looked at, where none is known
ANYTHING = (OBJECTS, definition.QUESTIONS, CAPTIONS)


@dataclasses.dataclass(frozen=True)
class Format:
    """How a format is known and read.

    Attributes:
      detect: path -> the file that shows it, or None.
      read: (request, tally, progress) -> DataSet.
      sources: what it may hold, see `definition.Import`.
      detect_likely: as detect, of what is taken for it only where nothing else is known.
      options: of `example.Request`, those that this format alone or few know.
    """

    detect: Callable[[str], str | None]
    read: Callable[[example.Request, example.Tally, example.Progress], example.DataSet]
    sources: tuple[str, ...]
    options: tuple[str, ...] = ()
    detect_likely: Callable[[str], str | None] | None = None

    def tasks(self) -> list[str]:
        """Returns what its rows can be made for."""
        return [name for name, (_, rule) in task.imports().items() if rule.source in self.sources]


# The first one that fits wins: a VOC folder may hold masks, a folder of masks a CSV of notes.
FORMATS = {
    "coco": Format(coco.detect, coco.read, (OBJECTS, CAPTIONS)),
    "yolo": Format(yolo.detect, yolo.read, (OBJECTS,), ("first_class",), yolo.detect_likely),
    "jsonl": Format(
        tables.detect_jsonl,
        tables.read_jsonl,
        ANYTHING,
        ("first_class",),
        tables.detect_jsonl_deeper,
    ),
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
    "box_csv": Format(box_tables.detect, box_tables.read, (OBJECTS,), ("first_class",)),
    "csv": Format(
        tables.detect_csv,
        tables.read_csv,
        ANYTHING,
        ("first_class",),
        tables.detect_csv_deeper,
    ),
}


def detect_all(path: str) -> dict[str, str]:
    """Returns {name of a format: the file that shows it} for all that a path could be."""
    return {key: shown for key, fmt in FORMATS.items() if (shown := fmt.detect(path))}


def detect_likely(path: str) -> dict[str, str]:
    """As `detect_all`, of what a path could be where that finds nothing."""
    looks = {key: fmt.detect_likely for key, fmt in FORMATS.items() if fmt.detect_likely}
    return {key: shown for key, look in looks.items() if (shown := look(path))}


def find_root(path: str) -> str:
    """Returns the folder of a data set that lies alone in a folder, as archives unpack; else path.

    A folder that is called as a split stays part of the path, where it can.
    """
    inner = source_files.innermost(path)
    if inner == path or detect_all(path):
        return path
    if example.split_name(os.path.relpath(inner, path)) and detect_likely(path).keys() - {"yolo"}:
        return path
    return inner if detect_all(inner) or detect_likely(inner) else path


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
        seen = detect_all(path) or detect_likely(path)
        fitting = [key for key in seen if source in FORMATS[key].sources]
        name = next(iter(fitting), next(iter(seen), None))
        if name is None:
            raise ValueError(_unknown(path))
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


def _unknown(path: str) -> str:
    """Returns what to say of a path that holds no data set of a known format."""
    if not os.path.isdir(path):
        what = locations.describe_file(path)
        problem = f"it is {what}" if what else "found one file"
        return f"SRC {path}: no data set of a known format ({', '.join(FORMATS)}); {problem}"
    files = (os.path.join(folder, n) for folder, names in source_files.walk(path) for n in names)
    for file in itertools.islice(files, MAX_DESCRIBED):
        if what := locations.describe_file(file):
            return f"SRC {path}: {os.path.relpath(file, path)} is {what}"
    for folder in source_files.folders(path)[:MAX_BELOW]:
        if seen := detect_all(folder) or detect_likely(folder):
            return (
                f"SRC {path}: no data set here, but {folder} is {next(iter(seen))}: give it as SRC"
            )
    held = ", ".join(sorted(os.listdir(path))[:8]) or "nothing"
    return (
        f"SRC {path}: no data set of a known format ({', '.join(FORMATS)}); found {held}. Force "
        f"one: --format coco"
    )


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

"""The table of tasks, and a task as the settings of a run want it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from paligemma_jax.tasks import (
    caption,
    definition,
    detection,
    json_answers,
    segmentation,
    vqa,
)
from paligemma_jax.wording import near_misses

Task = definition.Task
Options = definition.Options
USUAL = Options()

# Name -> what makes the task. A new task is one more line.
TASKS: dict[str, Callable[[Options], Task]] = {
    "detection": detection.make,
    "segmentation": segmentation.make,
    "vqa": vqa.make,
    "caption": caption.make,
    "json": json_answers.make,
}


def choose(name: str, options: Options = USUAL) -> Task:
    """Returns the task of that name, ready to read, write and score.

    Raises:
      ValueError: no such task, no such convention (`geometry.CONVENTIONS`), no such score; or
        options that the task has no use for, or lacks.
    """
    made = look_up(name, options)
    if options.scores and not made.usual_scores:
        raise ValueError(f"task '{name}' has its own scores: leave out scores={[*options.scores]}")
    if options.noise_boxes and not made.takes_noise_boxes:
        fitting = " or ".join(other.name for other in every() if other.takes_noise_boxes)
        raise ValueError(f"config: input.noise_piece: for {fitting}, not the task '{name}'")
    if made.needs_codec and options.codec is None:
        raise ValueError(f"task '{name}' needs a mask codec")
    return made


def look_up(name: str, options: Options = USUAL) -> Task:
    """Returns the task of that name, to read and check texts with; it may lack what scoring needs.

    Raises:
      ValueError: no such task: shows the near miss; no such convention, no such score.
    """
    if name not in TASKS:
        raise ValueError(
            f"task '{name}' is unknown. {near_misses.did_you_mean(name, TASKS)}"
            f"Expected one of {sorted(TASKS)}"
        )
    return TASKS[name](options)


def every() -> list[Task]:
    """Returns all tasks, in the order of the table."""
    return [make(USUAL) for make in TASKS.values()]


def imports() -> dict[str, tuple[Task, definition.Import]]:
    """Returns {value of --task: (the task that its rows are for, how they are made)}."""
    return {item.name: (one, item) for one in every() for item in one.imports}


def rule(name: str) -> definition.Import:
    """Returns how rows are made for a value of --task, or raises a ValueError for no such value."""
    return _imported(name)[1]


def trained_as(name: str) -> Task:
    """Returns the task that rows made for a value of --task are for."""
    return _imported(name)[0]


def _imported(name: str) -> tuple[Task, definition.Import]:
    known = imports()
    if name not in known:
        raise ValueError(
            f"--task {name} is unknown. {near_misses.did_you_mean(name, known)}"
            f"Expected one of {', '.join(known)}"
        )
    return known[name]


def scalars(scores: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers in scores that make curves: {"map50": .., "per_class/bone/map50": ..}.

    Left out: nan (no boxes, no number), matrices, counts by what a model wrote (unknown_labels),
    scores by what the truth is (per_count).
    """
    flat = {key: value for key, value in scores.items() if isinstance(value, int | float)}
    flat |= {f"dropped/{reason}": count for reason, count in scores.get("dropped", {}).items()}
    for group in ("per_class", "per_group"):
        for label, values in scores.get(group, {}).items():
            flat |= {f"{group}/{label}/{key}": value for key, value in values.items()}
    return {key: float(value) for key, value in flat.items() if not math.isnan(value)}

"""What a task is: functions from text to structure, back, and to scores; and the table of tasks."""

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paligemma_jax.tasks import caption, detection, detection_score, geometry, noise_boxes, vqa


@dataclasses.dataclass(frozen=True)
class Task:
    """The functions of one task.

    Attributes:
      parse: (text) -> structure. For a model's text: never raises.
      format: (structure) -> text to train on; parse(format(a)) is a, up to the task's rounding.
      check: (suffix) -> what is wrong with it as text to train on, or None.
      judge: (prediction, *, suffix, tokens=None) -> the task's own keys of a row of
        predictions.jsonl, always with score (0..1) and correct (None without truth). tokens are
        (piece, log-probability) of the prediction.
      score: (rows) -> scores of a data set. Rows hold prefix, prediction and what `judge` returned.
      metric: the key of `score` to follow a run by; higher is better.
    """

    parse: Callable[[str], Any]
    format: Callable[[Any], str]
    check: Callable[[str], str | None]
    judge: Callable[..., dict[str, Any]]
    score: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]
    metric: str


def make_detection(convention: str) -> Task:
    """Returns the detection task that reads and writes `<loc>` tokens by this convention."""
    geometry.scale(convention)  # a wrong name is an error now, not at the first box
    return Task(
        parse=functools.partial(detection.parse, convention=convention),
        format=functools.partial(detection.format, convention=convention),
        check=detection.check,
        judge=functools.partial(detection_score.judge, convention=convention),
        score=detection_score.score,
        metric="map50",
    )


def with_noise_boxes(convention: str) -> Task:
    """Returns the detection task of models that are trained with noise boxes."""
    judge = functools.partial(noise_boxes.judge, convention=convention)
    return dataclasses.replace(make_detection(convention), judge=judge)


TASKS = {
    "detection": make_detection(geometry.DEFAULT_CONVENTION),
    "vqa": Task(vqa.parse, vqa.format, vqa.check, vqa.judge, vqa.score, "exact_match"),
    "caption": Task(vqa.parse, vqa.format, vqa.check, caption.judge, caption.score, "word_f1"),
}


def choose(name: str, *, loc_convention: str = geometry.DEFAULT_CONVENTION) -> Task:
    """Returns the task of that name; its boxes, where it has any, follow `loc_convention`.

    Raises:
      ValueError: no such task, or no such convention (`geometry.CONVENTIONS`).
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"task '{name}' is unknown; expected one of {sorted(TASKS)}{hint}")
    return make_detection(loc_convention) if name == "detection" else TASKS[name]


def scalars(scores: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers in scores that make curves: {"map50": .., "per_class/bone/map50": ..}.

    Left out: nan (no boxes, no number), matrices, counts by what a model wrote (unknown_labels).
    """
    flat = {key: value for key, value in scores.items() if isinstance(value, int | float)}
    flat |= {f"dropped/{reason}": count for reason, count in scores.get("dropped", {}).items()}
    for label, values in scores.get("per_class", {}).items():
        flat |= {f"per_class/{label}/{key}": value for key, value in values.items()}
    return {key: float(value) for key, value in flat.items() if not math.isnan(value)}

"""What a task is: functions from text to structure, back, and to scores; and the table of tasks."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paligemma_jax.tasks import (
    detection,
    detection_score,
    geometry,
    metrics,
    noise_boxes,
    segmentation,
    segmentation_score,
    structure_metrics,
    text_metrics,
    vqa,
)
from paligemma_jax.wording import near_misses

Check = Callable[[str], str | None]


@dataclasses.dataclass(frozen=True)
class Task:
    """The functions of one task.

    Attributes:
      parse: (text) -> structure. For a model's text: never raises.
      format: (structure) -> text to train on; parse(format(a)) is a, up to the task's rounding.
      check: (suffix) -> what is wrong with it as text to train on, or None.
      judge: (prediction, *, suffix, tokens=None, extra=None, draw_truth=None) -> the task's own
        keys of a row of predictions.jsonl, always with score (0..1) and correct (None without
        truth). tokens are (piece, log-probability) of the prediction, extra the other keys of the
        row of data, draw_truth a function that returns its outlined objects (`masks.Regions`).
      score: (rows) -> scores of a data set. Rows hold prefix, prediction and what `judge` returned.
      metric: the key of `score` to follow a run by; higher is better.
      check_row: (extra) -> what keeps a row of data from being scored, or None.
    """

    parse: Callable[[str], Any]
    format: Callable[[Any], str]
    check: Check
    judge: Callable[..., dict[str, Any]]
    score: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]
    metric: str
    check_row: Callable[[Mapping[str, Any]], str | None] = lambda _: None


def make_detection(convention: str) -> Task:
    """Returns the detection task that reads and writes `<loc>` tokens by this convention."""
    geometry.scale(convention)  # a wrong name is an error now, not at the first box
    return Task(
        parse=functools.partial(detection.parse, convention=convention),
        format=functools.partial(detection.format, convention=convention),
        check=detection.check,
        judge=_of_text_alone(functools.partial(detection_score.judge, convention=convention)),
        score=detection_score.score,
        metric="map50",
    )


def with_noise_boxes(convention: str) -> Task:
    """Returns the detection task of models that are trained with noise boxes."""
    judge = functools.partial(noise_boxes.judge, convention=convention)
    return dataclasses.replace(make_detection(convention), judge=_of_text_alone(judge))


def make_segmentation(convention: str, codec: segmentation.Decode) -> Task:
    """Returns the segmentation task; `codec` turns mask tokens into masks."""
    geometry.scale(convention)
    return Task(
        parse=functools.partial(segmentation.parse, convention=convention),
        format=functools.partial(segmentation.format, convention=convention),
        check=segmentation.check,
        judge=functools.partial(segmentation_score.judge, codec=codec, convention=convention),
        score=segmentation_score.score,
        metric="miou",
    )


def make_answers(check: Check, scores: Sequence[str]) -> Task:
    """Returns a task whose answers are text, scored by these metrics; the first one leads."""
    chosen = metrics.choose(scores)

    def judge(
        prediction: str,
        *,
        suffix: str | None,
        tokens: Any = None,
        extra: Mapping[str, Any] | None = None,
        draw_truth: Any = None,  # noqa: ARG001 (every task's judge)
    ) -> dict[str, Any]:
        return text_metrics.judge(
            prediction, suffix=suffix, tokens=tokens, extra=extra, metrics=chosen
        )

    return Task(
        parse=vqa.parse,
        format=vqa.format,
        check=check,
        judge=judge,
        score=functools.partial(text_metrics.score, metrics=chosen),
        metric=scores[0],
        check_row=functools.partial(text_metrics.check_row, metrics=chosen),
    )


# name -> (check of a suffix, scores if none are asked for; () where the task has its own)
TASKS: dict[str, tuple[Check, tuple[str, ...]]] = {
    "detection": (detection.check, ()),
    "segmentation": (segmentation.check, ()),
    "vqa": (vqa.check, ("exact_match",)),
    "caption": (vqa.check, ("word_f1", "exact_match")),
    "json": (structure_metrics.check_json, ("json_exact", "json_f1")),
}


def choose(
    name: str,
    *,
    loc_convention: str = geometry.DEFAULT_CONVENTION,
    scores: Sequence[str] | None = None,
    codec: segmentation.Decode | None = None,
) -> Task:
    """Returns the task of that name.

    Args:
      name: a key of `TASKS`.
      loc_convention: of boxes, where it has any.
      scores: names of metrics for answers in words; None: the task's usual ones.
      codec: turns mask tokens into masks; only segmentation has a use for it, and needs it.

    Raises:
      ValueError: no such task, no such convention (`geometry.CONVENTIONS`), no such score, or
        scores for a task that has its own.
    """
    check, usual = choose_check(name), TASKS[name][1]
    if usual:
        return make_answers(check, scores or usual)
    if scores:
        raise ValueError(f"task '{name}' has its own scores: leave out scores={list(scores)}")
    if name == "detection":
        return make_detection(loc_convention)
    if codec is None:
        raise ValueError("task 'segmentation' needs a mask codec")
    return make_segmentation(loc_convention, codec)


def choose_check(name: str) -> Check:
    """Returns the check of a task's suffixes, or raises a ValueError that shows the near miss."""
    if name not in TASKS:
        raise ValueError(
            f"task '{name}' is unknown. {near_misses.did_you_mean(name, TASKS)}"
            f"Expected one of {sorted(TASKS)}"
        )
    return TASKS[name][0]


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


def _of_text_alone(judge: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Returns a task's judge of one that reads nothing of a row but its suffix."""

    def call(
        prediction: str,
        *,
        suffix: str | None,
        tokens: Sequence[tuple[str, float]] | None = None,
        extra: Mapping[str, Any] | None = None,
        draw_truth: Callable[[], Any] | None = None,
    ) -> dict[str, Any]:
        del extra, draw_truth
        return judge(prediction, suffix=suffix, tokens=tokens)

    return call

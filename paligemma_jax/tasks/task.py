"""What a task is: functions from text to structure, back, and to scores; and the table of tasks."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paligemma_jax.tasks import (
    box_text,
    detection,
    geometry,
    mask_text,
    metrics,
    segmentation,
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
      score_example: (prediction, *, suffix, tokens=None, extra=None, draw_truth=None) -> the task's
        own keys of a row of predictions.jsonl, always with score (0..1) and correct (None without
        truth). tokens are (piece, log-probability) of the prediction, extra the other keys of the
        row of data, draw_truth a function that returns its outlined objects (`masks.Regions`).
      aggregate: (rows) -> scores of a data set. Rows hold prefix, prediction and what
        `score_example` returned.
      metric: the key of `score` to follow a run by; higher is better.
      check_row: (extra) -> what keeps a row of data from being scored, or None.
    """

    parse: Callable[[str], Any]
    format: Callable[[Any], str]
    check: Check
    score_example: Callable[..., dict[str, Any]]
    aggregate: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]
    metric: str
    check_row: Callable[[Mapping[str, Any]], str | None] = lambda _: None


def make_detection(convention: str) -> Task:
    """Returns the detection task that reads and writes `<loc>` tokens by this convention."""
    geometry.scale(convention)  # a wrong name is an error now, not at the first box
    return Task(
        parse=functools.partial(box_text.parse, convention=convention),
        format=functools.partial(box_text.format, convention=convention),
        check=box_text.check,
        score_example=_of_text_alone(
            functools.partial(detection.score_example, convention=convention)
        ),
        aggregate=detection.aggregate,
        metric="map50",
    )


def with_noise_boxes(convention: str) -> Task:
    """Returns the detection task of models that are trained with noise boxes."""
    score_example = functools.partial(detection.score_with_noise, convention=convention)
    return dataclasses.replace(
        make_detection(convention), score_example=_of_text_alone(score_example)
    )


def make_segmentation(convention: str, codec: mask_text.Decode) -> Task:
    """Returns the segmentation task; `codec` turns mask tokens into masks."""
    geometry.scale(convention)
    return Task(
        parse=functools.partial(mask_text.parse, convention=convention),
        format=functools.partial(mask_text.format, convention=convention),
        check=mask_text.check,
        score_example=functools.partial(
            segmentation.score_example, codec=codec, convention=convention
        ),
        aggregate=segmentation.aggregate,
        metric="miou",
    )


def make_answers(check: Check, scores: Sequence[str]) -> Task:
    """Returns a task whose answers are text, scored by these metrics; the first one leads."""
    chosen = metrics.choose(scores)

    def score_example(
        prediction: str,
        *,
        suffix: str | None,
        tokens: Any = None,
        extra: Mapping[str, Any] | None = None,
        draw_truth: Any = None,  # noqa: ARG001 (every task has it)
    ) -> dict[str, Any]:
        return text_metrics.score_example(
            prediction, suffix=suffix, tokens=tokens, extra=extra, metrics=chosen
        )

    return Task(
        parse=vqa.parse,
        format=vqa.format,
        check=check,
        score_example=score_example,
        aggregate=functools.partial(text_metrics.aggregate, metrics=chosen),
        metric=scores[0],
        check_row=functools.partial(text_metrics.check_row, metrics=chosen),
    )


# name -> (check of a suffix, scores if none are asked for; () where the task has its own)
TASKS: dict[str, tuple[Check, tuple[str, ...]]] = {
    "detection": (box_text.check, ()),
    "segmentation": (mask_text.check, ()),
    "vqa": (vqa.check, ("exact_match",)),
    "caption": (vqa.check, ("word_f1", "exact_match")),
    "json": (structure_metrics.check_json, ("json_exact", "json_f1")),
}


def choose(
    name: str,
    *,
    loc_convention: str = geometry.DEFAULT_CONVENTION,
    scores: Sequence[str] | None = None,
    codec: mask_text.Decode | None = None,
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


def _of_text_alone(score_example: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Returns a task's `score_example` of one that reads nothing of a row but its suffix."""

    def call(
        prediction: str,
        *,
        suffix: str | None,
        tokens: Sequence[tuple[str, float]] | None = None,
        extra: Mapping[str, Any] | None = None,
        draw_truth: Callable[[], Any] | None = None,
    ) -> dict[str, Any]:
        del extra, draw_truth
        return score_example(prediction, suffix=suffix, tokens=tokens)

    return call

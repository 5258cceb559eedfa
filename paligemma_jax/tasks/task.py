"""The table of tasks, and what is asked of all of them.

A task as the settings of a run want it; which task answers look like; what the scores mean.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paligemma_jax.tasks import box_text, definition, detection, metrics, segmentation, text_metrics
from paligemma_jax.wording import phrases

Task = definition.Task
Options = definition.Options
USUAL = Options()

# Name -> what makes the task. A new task is one more line.
TASKS: dict[str, Callable[[Options], Task]] = {
    "detection": detection.make,
    "segmentation": segmentation.make,
    "vqa": metrics.make_vqa,
    "caption": metrics.make_caption,
    "json": metrics.make_json,
    "mixed": metrics.make_mixed,
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
            f"task '{name}' is unknown. {phrases.did_you_mean(name, TASKS)}"
            f"Expected one of {sorted(TASKS)}"
        )
    return TASKS[name](options)


def is_one(name: str) -> bool:
    """Whether this is the name of a task, and not only of one that an import knows."""
    return name in TASKS


def every() -> list[Task]:
    """Returns all tasks, in the order of the table."""
    return [make(USUAL) for make in TASKS.values()]


def imports() -> dict[str, tuple[Task, definition.Import]]:
    """Returns {value of --task: (the task that its rows are for, how they are made)}."""
    return {item.name: (one, item) for one in every() for item in one.imports}


def rule(name: str) -> definition.Import:
    """Returns how rows are made for a value of --task, or raises a ValueError for no such value."""
    return _imported(name)[1]


def import_names(name: str) -> list[str]:
    """Returns the values of --task whose rows are for the task of a name."""
    return [value for value, (one, _) in imports().items() if one.name == name]


def trained_as(name: str) -> Task:
    """Returns the task that rows made for a value of --task are for."""
    return _imported(name)[0]


def _imported(name: str) -> tuple[Task, definition.Import]:
    known = imports()
    if name not in known:
        raise ValueError(
            f"--task {name} is unknown. {phrases.did_you_mean(name, known)}"
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


# Of fewer answers each is judged by itself.
MIN_ANSWERS = 3
NEARLY_ALL = 0.9

_SEG = re.compile(r"<seg[0-9]+>")
_LOC = re.compile(r"<loc[0-9]+>")


@dataclasses.dataclass(frozen=True)
class Mismatch:
    """Answers that nearly all belong to one other task.

    Attributes:
      what: how many, what they look like, one of them.
      remedy: which task to set.
      is_refused: the task that is set cannot read them; else it would train, on text alone.
    """

    what: str
    remedy: str
    is_refused: bool


def find_mismatch(task_name: str, answers: Sequence[str]) -> Mismatch | None:
    """Returns what nearly all answers look like, where it is another task's; None where not.

    Args:
      task_name: a key of `task.TASKS`.
      answers: suffixes of training data; empty ones say nothing.
    """
    answers = [answer for answer in answers if answer.strip()]
    if len(answers) < MIN_ANSWERS:
        return None
    asked = look_up(task_name)
    looks = [_look(answer, asked) for answer in answers]
    look, count = collections.Counter(looks).most_common(1)[0]
    if look in asked.looks or count < NEARLY_ALL * len(answers):
        return None
    many = "all" if count == len(answers) else f"{count} of"
    example = box_text.shorten(answers[looks.index(look)])
    what = f"{many} {len(answers)} answers are {look}, and the task is '{task_name}': '{example}'"
    remedy = next(one.remedy for one in every() if one.looks[0] == look and one.remedy)
    if asked.looks[0] == definition.WORDS:  # words may be anything
        return Mismatch(f"{what} is learnt and scored as words", remedy, is_refused=False)
    return Mismatch(f"{what} should be as '{asked.form}'", remedy, is_refused=True)


def likely(prompts: Sequence[str], answers: Sequence[str]) -> str:
    """Returns the task that rows are most likely of, by what most of their answers look like.

    Where all answers are empty, prompts tell. Words are captions where all prompts are one.
    """
    readers = {one.looks[0]: one for one in every()}
    words = next(one for one in every() if one.looks[0] == definition.WORDS)
    looks = [_look(answer, words) for answer in answers if answer.strip()]
    if looks:
        look = collections.Counter(looks).most_common(1)[0][0]
        if look != definition.WORDS:
            return readers[look].name
    else:
        verbs = {one.grammar.verb: one.name for one in every() if one.grammar}
        asked = collections.Counter(prompt.partition(" ")[0] for prompt in prompts)
        if name := verbs.get(asked.most_common(1)[0][0] if asked else ""):
            return name
    named = {item.source: one.name for one, item in imports().values()}
    alike = len(set(prompts)) == 1
    return named[definition.CAPTIONS if alike else definition.QUESTIONS]


def _look(answer: str, asked: definition.Task) -> str:
    """Returns what an answer looks like, as `definition.Task.looks` has it."""
    if _LOC.search(answer):
        return definition.MASKS if _SEG.search(answer) else definition.BOXES
    # A number alone is JSON too, but a word where JSON is not asked for.
    is_structure = asked.looks[0] == definition.JSON or answer.lstrip().startswith(("{", "["))
    is_json = is_structure and text_metrics.check_json(answer) is None
    return definition.JSON if is_json else definition.WORDS


LOSSES = {
    "loss": "mean over examples of -log p of a true answer's tokens; lower is better",
    "perplexity": "e to the loss: 1 is certain of the truth",
}
COMMON = {
    "correct": "share of examples with nothing wrong and nothing left out",
    "verbatim": "share of answers that are the truth letter by letter",
    "image_score": "mean of the examples' scores, by which the worst come first",
    "count_correct": "share of images with as many objects as there should be",
    "num_images": "images with a known truth",
    "num_examples": "examples with a known truth",
    "num_truths": "true objects",
    "num_predictions": "predicted objects",
    "empty": "examples for which nothing was predicted",
    "num_hit_max_new_tokens": "answers that were cut off: no end within max_new_tokens",
    "mean_tokens": "mean length of an answer",
}


def all_score_docs() -> dict[str, str]:
    """Returns {score: what it means}, of every task and metric."""
    docs = dict(LOSSES)
    for one in every():
        docs |= one.score_docs
    docs |= {name: metric.doc for name, metric in metrics.METRICS.items()}
    for metric in metrics.METRICS.values():
        docs |= metric.further
    return docs | COMMON


# What people call the scores whose names do not say it; others are called by their names.
TITLES = {
    "loss": "loss",
    "map": "mAP 50 to 95",
    "map50": "mAP 50",
    "map75": "mAP 75",
    "precision50": "precision",
    "recall50": "recall",
    "mean_iou": "mean IoU",
    "miou": "mean IoU of masks",
    "box_accuracy50": "boxes at IoU 0.5",
    "box_accuracy75": "boxes at IoU 0.75",
    "pixel_iou": "IoU of pixels",
    "correct": "all correct",
    "verbatim": "letter by letter",
    "image_score": "mean score of an example",
    "count_correct": "right number of objects",
    "num_images": "images",
    "num_examples": "examples",
    "num_truths": "true objects",
    "num_predictions": "predicted objects",
    "empty": "empty answers",
    "invalid": "objects without a mask",
    "num_hit_max_new_tokens": "answers cut off",
    "mean_tokens": "tokens an answer",
    "vqa_accuracy": "VQA accuracy",
    "vqav2_accuracy": "VQAv2 accuracy",
    "anls": "ANLS",
    "cider": "CIDEr",
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "json_f1": "JSON fields, F1",
    "json_exact": "JSON, all fields",
    "json_valid": "valid JSON",
}


def leading_scores() -> tuple[str, ...]:
    """Returns the scores that a report begins with, the first few that it has: the loss last."""
    first = [name for name in first_scores() if name not in ("loss", "verbatim")]
    return (*first, "loss", "verbatim")


def confusion_cells(
    rows: Sequence[Mapping[str, Any]], confusion: Mapping[str, Any] | None
) -> list[list[tuple[int, int]]]:
    """Returns of each row the cells (truth, prediction) of the confusion matrix that it counts in.

    Rows whose truth is not known count in none; with no matrix no row does. Over all rows each cell
    comes up as often as `confusion["counts"]` says.
    """
    place = {label: number for number, label in enumerate((confusion or {}).get("labels", ()))}
    other = place.get(detection.OTHER)
    cells = [
        [(place.get(truth), place.get(answer, other)) for truth, answer in _pairs(row)]
        for row in (rows if place else ())
    ] or [[] for _ in rows]
    return [[(t, a) for t, a in row if t is not None and a is not None] for row in cells]


def _pairs(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the pairs of (truth, prediction) of a row of any task."""
    if row.get("truths") is not None and "detections" in row:
        return detection.pairs(row)
    return [text_metrics.pair(row)] if row.get("references") else []


def first_scores() -> tuple[str, ...]:
    """Returns the scores that say most, of every task and metric, in the order they are read in."""
    of_tasks = [name for one in every() for name in one.first_scores]
    return ("loss", *of_tasks, *metrics.METRICS, "verbatim")


def choose_first_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """Returns those of the scores that say most, in the order they are read in."""
    return {name: scores[name] for name in first_scores() if name in scores}


# Of a table of scores: its columns, its lines of classes, what comes before a label and its score,
# and the counts of which the first is a column.
MAX_COLUMNS, MAX_CLASSES = 7, 30
PER_LABEL = ("per_class/", "per_group/")
COUNTS = ("num_truths", "num_examples", "num_images")


def score_rows(
    scores: Mapping[str, float], *, with_classes: bool = True, limit: int = MAX_CLASSES
) -> tuple[tuple[str, ...], list[tuple[str, ...]], int]:
    """Returns the main scores as a table: (header, rows, classes left out); no rows without any.

    Args:
      scores: `scalars` of an evaluation.
      with_classes: whether classes, or groups of answers, have a row each, below that of all.
      limit: how many of them at most: those with the most examples.
    """
    wanted = [name for name in leading_scores() if name in scores][:MAX_COLUMNS]
    if not wanted:
        return (), [], 0
    wanted = [name for name in COUNTS if name in scores][:1] + wanted
    by_label: dict[str, dict[str, float]] = {}
    for key, value in scores.items():
        if key.startswith(PER_LABEL):
            label, _, name = key.partition("/")[2].rpartition("/")
            by_label.setdefault(label, {})[name] = value
    if not with_classes or len(by_label) < 2:
        by_label = {}
    shown = sorted(by_label, key=lambda label: -by_label[label].get(wanted[0], 0))[:limit]
    rows = [("all", *(_cell(name, scores) for name in wanted))]
    rows += [(label, *(_cell(name, by_label[label]) for name in wanted)) for label in shown]
    header = ("", *(TITLES.get(name, name) for name in wanted))
    return header, rows, len(by_label) - len(shown)


def _cell(name: str, scores: Mapping[str, float]) -> str:
    if name not in scores:
        return ""
    return f"{scores[name]:.0f}" if name in COUNTS else f"{scores[name]:.3f}"

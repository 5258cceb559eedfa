"""Answers of another task than the one that is set: what they look like, and what to set."""

import collections
import dataclasses
import re
from collections.abc import Sequence

from paligemma_jax.tasks import box_text, definition, structure_metrics, task

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


def find(task_name: str, answers: Sequence[str]) -> Mismatch | None:
    """Returns what nearly all answers look like, where it is another task's; None where not.

    Args:
      task_name: a key of `task.TASKS`.
      answers: suffixes of training data; empty ones say nothing.
    """
    answers = [answer for answer in answers if answer.strip()]
    if len(answers) < MIN_ANSWERS:
        return None
    asked = task.look_up(task_name)
    looks = [_look(answer, asked) for answer in answers]
    look, count = collections.Counter(looks).most_common(1)[0]
    if look in asked.looks or count < NEARLY_ALL * len(answers):
        return None
    many = "all" if count == len(answers) else f"{count} of"
    example = box_text.shorten(answers[looks.index(look)])
    what = f"{many} {len(answers)} answers are {look}, and the task is '{task_name}': '{example}'"
    remedy = next(one.remedy for one in task.every() if one.looks[0] == look and one.remedy)
    if asked.looks[0] == definition.WORDS:  # words may be anything
        return Mismatch(f"{what} is learnt and scored as words", remedy, is_refused=False)
    return Mismatch(f"{what} should be as '{asked.form}'", remedy, is_refused=True)


def _look(answer: str, asked: definition.Task) -> str:
    """Returns what an answer looks like, as `definition.Task.looks` has it."""
    if _LOC.search(answer):
        return definition.MASKS if _SEG.search(answer) else definition.BOXES
    # A number alone is JSON too, but a word where JSON is not asked for.
    is_structure = asked.looks[0] == definition.JSON or answer.lstrip().startswith(("{", "["))
    is_json = is_structure and structure_metrics.check_json(answer) is None
    return definition.JSON if is_json else definition.WORDS

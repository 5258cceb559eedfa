"""Answers of another task than the one that is set: what they look like, and what to set."""

import collections
import dataclasses
import re
from collections.abc import Sequence

from paligemma_jax.tasks import spacing, structure_metrics

# Of fewer answers each is judged by itself.
MIN_ANSWERS = 3
NEARLY_ALL = 0.9

_SEG = re.compile(r"<seg[0-9]+>")
_LOC = re.compile(r"<loc[0-9]+>")

MASKS, BOXES, JSON, WORDS = "boxes with masks", "boxes", "JSON", "words without boxes"
# What answers look like -> what to set.
REMEDIES = {
    MASKS: "set task='segmentation'",
    BOXES: "set task='detection'",
    JSON: "set task='json'",
    WORDS: "set task='vqa' (or 'caption': scored by its words)",
}
# What the answers of a task may look like.
FITTING = {
    "segmentation": (MASKS,),
    "detection": (BOXES,),
    "json": (JSON,),
    "vqa": (WORDS, JSON),
    "caption": (WORDS, JSON),
}
# An answer of each task that cannot read others.
OWN_FORM = {
    "segmentation": "<loc0390><loc0241><loc0472><loc0440><seg071>...<seg018> water",
    "detection": "<loc0390><loc0241><loc0472><loc0440> fracture",
    "json": '{"dime": 2}',
}


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
    looks = [_look(answer, task_name) for answer in answers]
    look, count = collections.Counter(looks).most_common(1)[0]
    if look in FITTING[task_name] or count < NEARLY_ALL * len(answers):
        return None
    many = "all" if count == len(answers) else f"{count} of"
    example = spacing.shorten(answers[looks.index(look)])
    what = f"{many} {len(answers)} answers are {look}, and the task is '{task_name}': '{example}'"
    if own := OWN_FORM.get(task_name):
        return Mismatch(f"{what} should be as '{own}'", REMEDIES[look], is_refused=True)
    return Mismatch(f"{what} is learnt and scored as words", REMEDIES[look], is_refused=False)


def _look(answer: str, task_name: str) -> str:
    """Returns what an answer looks like, a key of `REMEDIES`."""
    if _LOC.search(answer):
        return MASKS if _SEG.search(answer) else BOXES
    # A number alone is JSON too, but a word where JSON is not asked for.
    is_structure = task_name == "json" or answer.lstrip().startswith(("{", "["))
    return JSON if is_structure and structure_metrics.check_json(answer) is None else WORDS

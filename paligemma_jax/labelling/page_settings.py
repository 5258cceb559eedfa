"""What the labelling page is set to: task, classes, prompt, and what answers are made of by keys.

Kept in the data set's folder, so that all labellers have the same and the next start too.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from paligemma_jax.files import atomic
from paligemma_jax.labelling import row_store
from paligemma_jax.tasks import box_text, definition, task

FILE = "settings.json"
MAX_TEXTS, MAX_LETTERS = 200, 2000
FIRST_TASK = next(iter(task.imports()))
# How events with their phases become an answer; each is read by the score event_phase_f1.
FORMATS = ("pairs", "json", "sentence", "words")


@dataclasses.dataclass(frozen=True)
class PageSettings:
    """What the page offers.

    Attributes:
      task: a value of `import_data --task`.
      classes: names of objects, in the order of their keys 1 to 9.
      prompt: template of prompts; None: the task's own.
      questions: that may be asked.
      answers: that are given often.
      events: names of events, in the order of their keys A to E and further.
      phases: that an event may be in, in the order of their keys 1 to 4 and further.
      format: how events become an answer, one of FORMATS.
    """

    task: str = FIRST_TASK
    classes: tuple[str, ...] = ()
    prompt: str | None = None
    questions: tuple[str, ...] = ("which events are there?",)
    answers: tuple[str, ...] = ("yes", "no")
    events: tuple[str, ...] = ("event a", "event b", "event c", "event d", "event e")
    phases: tuple[str, ...] = ("1", "2", "3", "4")
    format: str = "pairs"

    def change(self, values: Mapping[str, Any], *, where: str) -> "PageSettings":
        """Returns these with some values replaced; `where` they are from, for errors.

        Raises:
          ValueError: a name that there is not, or a value of another kind.
        """
        changed: dict[str, Any] = {}
        for name, value in values.items():
            if name not in NAMES:
                raise ValueError(f"{where}: '{name}' is unknown; expected some of {list(NAMES)}")
            if isinstance(getattr(self, name), tuple):
                changed[name] = _texts(value, f"{where}: {name}")
            elif value is None and name == "prompt":
                changed[name] = None
            else:
                changed[name] = _text(value, f"{where}: {name}")
        made = dataclasses.replace(self, **changed)
        task.rule(made.task)
        if made.format not in FORMATS:
            raise ValueError(f"{where}: format '{made.format}': expected one of {list(FORMATS)}")
        return made


NAMES = tuple(field.name for field in dataclasses.fields(PageSettings))


def read(path: pathlib.Path, start: PageSettings) -> PageSettings:
    """Returns what a file changes of settings; a ValueError if it is none of ours."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except ValueError as error:
        raise ValueError(f"{path}: no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object with some of {list(NAMES)}")
    return start.change(values, where=str(path))


def write(path: pathlib.Path, settings: PageSettings) -> None:
    atomic.write_json(path, dataclasses.asdict(settings))


def guess(items: Sequence[row_store.Item]) -> PageSettings:
    """Returns what rows that are there have: their task, classes, questions and answers."""
    rows = [item.row for item in items if item.row and item.is_labelled][:1000]
    if not rows:
        return PageSettings()
    prompts, answers = ([str(row.get(key) or "") for row in rows] for key in ("prefix", "suffix"))
    likely = task.likely(prompts, answers)
    name = next(iter(task.import_names(likely)), FIRST_TASK)
    made = PageSettings(task=name)
    rule, used = task.rule(name), task.trained_as(name)
    if rule.source == definition.OBJECTS:
        return dataclasses.replace(made, classes=_classes(rows, used))
    common = _most_common(answers)
    return dataclasses.replace(made, answers=tuple(common) if len(common) > 1 else made.answers)


def _classes(rows: Sequence[Mapping[str, Any]], used: definition.Task) -> tuple[str, ...]:
    """Returns the classes that prompts name, in their order, then those of answers."""
    verb = used.grammar.verb if used.grammar else ""
    names: dict[str, None] = {}
    for row in rows:
        if verb:
            names |= dict.fromkeys(box_text.prefix_classes(str(row.get("prefix")), verb=verb))
    for row in rows:
        listed = row.get("objects")
        kept = [one.get("label") for one in listed] if isinstance(listed, list) else []
        names |= dict.fromkeys(kept or used.labels(used.parse(str(row.get("suffix")))))
    return tuple(name for name in names if isinstance(name, str))


def _most_common(answers: Sequence[str], limit: int = 9) -> list[str]:
    """Returns answers that several rows have, the most frequent first."""
    counts: dict[str, int] = {}
    for answer in answers:
        counts[answer] = counts.get(answer, 0) + 1
    several = [answer for answer, count in counts.items() if count > 1 and answer]
    return sorted(several, key=lambda answer: -counts[answer])[:limit]


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or len(value) > MAX_TEXTS:
        raise ValueError(
            f"{where}: expected a list of up to {MAX_TEXTS} texts, found {value!r:.80}"
        )
    return tuple(dict.fromkeys(_text(one, where) for one in value))


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_LETTERS:
        raise ValueError(f"{where}: expected a text that is not empty, found {value!r:.80}")
    return value.strip()

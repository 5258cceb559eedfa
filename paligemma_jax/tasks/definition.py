"""What a task is: one object with everything that the rooms ask of it.

A file of this room makes one such object for each task, from `Options`; `task.TASKS` lists them.
Every field must be given: what a task does not have, it says so.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from paligemma_jax.tasks import geometry, mask_text

# What an answer may look like.
MASKS, BOXES, JSON, WORDS = "boxes with masks", "boxes", "JSON", "words without boxes"
# What a data set of another tool may hold.
OBJECTS, CAPTIONS, QUESTIONS = "objects", "captions", "questions"

Tokens = Sequence[tuple[str, float]]
Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What the settings of a run say about its task.

    Attributes:
      convention: of `<loc>` tokens, see `geometry`.
      scores: names of metrics for answers in words; (): the task's usual ones.
      codec: turns mask tokens into masks. Without it texts can be read, and masks not scored.
      noise_boxes: whether the model was trained with noise boxes.
    """

    convention: str = geometry.DEFAULT_CONVENTION
    scores: tuple[str, ...] = ()
    codec: mask_text.Decode | None = None
    noise_boxes: bool = False


@dataclasses.dataclass(frozen=True)
class ObjectGrammar:
    """What `constrain="task"` lets a model write: any number of objects, parted by ` ; `.

    Attributes:
      verb: of the prompts that name the labels: "detect cat ; dog".
      num_segs: how many `<seg>` tokens follow the four `<loc>` tokens of an object.
    """

    verb: str
    num_segs: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Import:
    """How a data set of another tool becomes rows of a task.

    Attributes:
      name: what `--task` calls it.
      prompt: template of the prompts.
      fields: what a template may hold, in braces: "classes" are those of the data set.
      source: what the data set must hold: OBJECTS, CAPTIONS or QUESTIONS.
      answer: what is made of it.
      columns: of a table, those that a row needs where it has no suffix.
      endings: of files that are most likely meant for this.
      scores: to ask for in evaluations, where the task's usual ones do not fit.
    """

    name: str
    prompt: str
    fields: tuple[str, ...]
    source: str
    answer: Literal["boxes", "masks", "counts", "text"]
    columns: tuple[str, ...]
    endings: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Drawing:
    """What is drawn over an image.

    Attributes:
      boxes_yxyx: float[n, 4] in 0..1 of the image.
      labels: n texts.
      masks: float[n, 64, 64], each in its box, above 0 inside; None: boxes alone.
    """

    boxes_yxyx: np.ndarray
    labels: tuple[str, ...]
    masks: np.ndarray | None = None


NOTHING_DRAWN = Drawing(np.zeros((0, 4), np.float32), ())


class ScoreExample(Protocol):
    """Compares one prediction with its truth: the task's own keys of a row of predictions.jsonl.

    Among them are always score (0..1) and correct, both None without truth. Never raises on the
    prediction; a true text that the task cannot read is a ValueError.

    Args:
      prediction: the model's text.
      suffix: the true text; None where it is not known.
      tokens: (piece, log-probability) of the prediction.
      extra: the other keys of the row of data.
      draw_truth: returns the row's outlined objects.
    """

    def __call__(
        self,
        prediction: str,
        *,
        suffix: str | None,
        tokens: Tokens | None = None,
        extra: Row | None = None,
        draw_truth: Callable[[], geometry.Regions] | None = None,
    ) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One task. Laws: `parse` never raises, and `format(parse(s)) == s` for every canonical s.

    Attributes:
      name: its key in `task.TASKS`, and the value of the config key `task`.
      parse: (a model's text) -> structure; drops what is malformed.
      format: (structure) -> text to train on; parse(format(a)) is a, up to the task's rounding.
      check: (suffix) -> what is wrong with it as text to train on, or None.
      labels: (structure) -> its class names; none where answers have no classes.
      has_short_answers: whether answers of few kinds are classes.
      score_example: see `ScoreExample`.
      aggregate: (rows) -> scores of a data set. Rows hold prefix, prediction and what
        `score_example` returned.
      check_row: (other keys of a row of data) -> what keeps it from being scored, or None.
      usual_scores: metrics that score it unless others are asked for; (): it has its own scores.
      metric: the key of `aggregate` to follow a run by; higher is better.
      score_docs: what the task's own scores mean, in a line each.
      first_scores: which of them are read first.
      draw: (structure) -> what is drawn over an image.
      grammar: what `constrain="task"` allows; None: it has no grammar of its own.
      looks: what its answers may look like; the first is what sets it apart.
      form: an answer as it should look, for messages.
      remedy: what to set where answers look like its own; None: another task's remedy names it.
      imports: how data sets of other tools become its rows.
      needs_codec: whether it needs a mask codec to score.
      moves_boxes: whether its text is boxes that augmentation can move and write anew.
      takes_noise_boxes: whether noise boxes can fill its answers up.
      keeps_coordinates: whether weights trained on it refuse other `coordinates`.
    """

    name: str
    parse: Callable[[str], Any]
    format: Callable[[Any], str]
    check: Callable[[str], str | None]
    labels: Callable[[Any], Sequence[str]]
    has_short_answers: bool
    score_example: ScoreExample
    aggregate: Callable[[Sequence[Row]], dict[str, Any]]
    check_row: Callable[[Row], str | None]
    usual_scores: tuple[str, ...]
    metric: str
    score_docs: Mapping[str, str]
    first_scores: tuple[str, ...]
    draw: Callable[[Any], Drawing]
    grammar: ObjectGrammar | None
    looks: tuple[str, ...]
    form: str
    remedy: str | None
    imports: tuple[Import, ...]
    needs_codec: bool
    moves_boxes: bool
    takes_noise_boxes: bool
    keeps_coordinates: bool

    def canonical(self, text: str) -> str:
        """Returns what of a text the task can read, as it is written to train on."""
        return self.format(self.parse(text))


def of_text_alone(score_example: Callable[..., dict[str, Any]]) -> ScoreExample:
    """Returns a `ScoreExample` of a function that takes prediction, suffix and tokens only."""

    def call(
        prediction: str,
        *,
        suffix: str | None,
        tokens: Tokens | None = None,
        extra: Row | None = None,
        draw_truth: Callable[[], geometry.Regions] | None = None,
    ) -> dict[str, Any]:
        del extra, draw_truth
        return score_example(prediction, suffix=suffix, tokens=tokens)

    return call


def every_row(extra: Row) -> str | None:
    """The `check_row` of a task that needs no further keys of a row of data."""
    del extra

"""What scores say, in one sentence: the first thing that is wrong, and what to do about it."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from paligemma_jax.reports import page
from paligemma_jax.wording import phrases

Scores = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]
Mood = Literal["good", "bad", "neutral"]

LAST_ROWS = 5  # of the training loss: their median counts
# A validation loss above so many times that of training, and so much above it: learnt by heart.
GAP_FACTOR, GAP_DIFFERENCE = 3.0, 0.3
MALFORMED, CUT_OFF = 0.2, 0.1  # shares that are a problem
MIXED_UP, MIN_MIXED_UP = 0.2, 3  # share of the truths of two classes, and how many at least
NOTHING_THERE = 0.05  # precision and recall below which nothing was learnt yet
WEAK, STRONG = 0.5, 0.9
STILL_FALLING = 0.05  # of the loss, over the last quarter of the steps
MIN_ROWS = 8  # to tell a trend
UNREAL = ("(nothing)", "(other)")  # no classes, though the confusion matrix has them


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """A sentence, what it is about, and whether that is good."""

    kind: str
    mood: Mood
    text: str


def diagnose(
    scores: Scores, history: Rows = (), *, evaluation: str = "", first: Sequence[str] = ()
) -> Diagnosis:
    """Returns what is most wrong; where nothing is, how good the leading score is.

    Args:
      scores: of the evaluated data, as metrics.json has them.
      history: rows of metrics.jsonl of the training run, for the losses.
      evaluation: its name in `history`: "valid" of "valid/loss".
      first: names of scores from 0 to 1 in the order in which they are read; of those that
        `scores` has the first one says how good it is.
    """
    checks: list[Callable[[], Diagnosis | None]] = [
        lambda: _not_a_number(scores, history),
        lambda: _malformed(scores),
        lambda: _cut_off(scores),
        lambda: _overfitted(scores, history, evaluation),
        lambda: _nothing_yet(scores, history),
        lambda: _mixed_up(scores),
        lambda: _missed_or_invented(scores),
        lambda: _imprecise(scores),
    ]
    one = next((result for check in checks if (result := check())), None)
    return one or _how_good(scores, history, first)


def _not_a_number(scores: Scores, history: Rows) -> Diagnosis | None:
    losses = [scores.get("loss"), *(row["loss"] for row in history[-1:] if "loss" in row)]
    if all(loss is None or math.isfinite(loss) for loss in losses):
        return None
    remedy = "a lower learning rate, or compute_dtype float32 or bfloat16, may help."
    return Diagnosis("diverged", "bad", f"The loss is no number any more: {remedy}")


def _malformed(scores: Scores) -> Diagnosis | None:
    dropped, read = sum((scores.get("dropped") or {}).values()), scores.get("num_predictions")
    if read is not None:
        share = dropped / (dropped + read) if dropped else 0.0
        what, remedy = "of the predicted objects", "--eval.constrain=task allows no others"
    else:
        share = 1 - scores.get("json_valid", 1)
        what, remedy = "of the answers", "--eval.constrain=SCHEMA.json allows no others"
    if not share >= MALFORMED:
        return None
    text = f"Malformed answers: {_percent(share)} {what} cannot be read. Train for more steps; "
    return Diagnosis("malformed", "bad", f"{text}{remedy}.")


def _cut_off(scores: Scores) -> Diagnosis | None:
    number = scores.get("num_hit_max_new_tokens") or 0
    total = scores.get("num_images", scores.get("num_examples")) or 0
    if not total or number < CUT_OFF * total:
        return None
    text = f"Answers that do not end: {number:,} of {phrases.count(total, 'answers')}"
    remedy = "Train for more steps, or give them room: max_new_tokens"
    return Diagnosis("cut off", "bad", f"{text} were cut off. {remedy}.")


def _overfitted(scores: Scores, history: Rows, evaluation: str) -> Diagnosis | None:
    trained, loss = _training_loss(history), scores.get("loss")
    if trained is None or loss is None:
        return None
    if loss < GAP_FACTOR * trained or loss < trained + GAP_DIFFERENCE:
        return None
    before = [
        (row[key], row["step"])
        for row in history
        if (key := f"{evaluation}/loss") in row and math.isfinite(row[key])
    ]
    best, step = min(before, default=(loss, 0))
    of = evaluation or "other data"
    text = f"Overfitted: the loss is {trained:.2g} in training and {loss:.2g} on {of}"
    if best < 0.9 * loss:
        text += f", and was {best:.2g} at step {step:,}. Stop earlier (keep_best), or add"
    else:
        text += ". Add"
    return Diagnosis("overfitted", "bad", f"{text} data or augmentation.")


def _nothing_yet(scores: Scores, history: Rows) -> Diagnosis | None:
    quality = [scores.get("precision50"), scores.get("recall50")]
    known = [value for value in quality if value is not None and math.isfinite(value)]
    is_empty = scores.get("num_predictions") == 0 and scores.get("num_truths")
    if not is_empty and not (known and max(known) < NOTHING_THERE and scores.get("num_truths")):
        return None
    what = "Nothing is predicted" if is_empty else "Hardly a box is where one should be"
    trend = _falling(history)
    remedy = "the loss still falls, so train for more steps" if trend else "train for more steps"
    return Diagnosis("nothing yet", "bad", f"{what}: {remedy}, or check the prompt and the boxes.")


def _mixed_up(scores: Scores) -> Diagnosis | None:
    confusion = scores.get(page.CONFUSION)
    if not confusion:
        return None
    labels, counts = confusion["labels"], confusion["counts"]
    real = [place for place, label in enumerate(labels) if label not in UNREAL]
    worst = (0.0, 0, "", "")
    for number, a in enumerate(real):
        for b in real[number + 1 :]:
            mixed, total = counts[a][b] + counts[b][a], sum(counts[a]) + sum(counts[b])
            if mixed >= MIN_MIXED_UP:
                worst = max(worst, (mixed / total, mixed, labels[a], labels[b]))
    share, mixed, first, second = worst
    if share < MIXED_UP:
        return None
    text = f"Classes mixed up: “{first}” and “{second}” {mixed:,} times ({_percent(share)})"
    return Diagnosis("mixed up", "bad", f"{text}. Look at their labels, or add examples of them.")


def _missed_or_invented(scores: Scores) -> Diagnosis | None:
    precision, recall = scores.get("precision50"), scores.get("recall50")
    if precision is None or recall is None or not (precision < WEAK or recall < WEAK):
        return None
    if recall <= precision:
        text = f"Objects are missed: {_percent(1 - recall)} of the true ones are not predicted"
        return Diagnosis("missed", "bad", f"{text}. More steps, or a larger res for small ones.")
    text = f"Objects are invented: {_percent(1 - precision)} of the predicted ones are not there"
    return Diagnosis("invented", "bad", f"{text}. More steps, or images without objects.")


def _imprecise(scores: Scores) -> Diagnosis | None:
    loose, strict = scores.get("map50"), scores.get("map75")
    if loose is None or strict is None or not (loose >= WEAK and strict < WEAK * loose):
        return None
    text = f"Boxes are near, not exact: mAP is {loose:.2f} at IoU 0.5 and {strict:.2f} at 0.75"
    return Diagnosis("imprecise", "neutral", f"{text}. A larger res, or more steps.")


def _how_good(scores: Scores, history: Rows, first: Sequence[str]) -> Diagnosis:
    name = next((n for n in first if scores.get(n) is not None and n != "loss"), None)
    value = scores[name] if name else math.nan
    falls = _falling(history)
    more = "The training loss still falls: more steps may help." if falls else ""
    if not math.isfinite(value):
        return Diagnosis("unknown", "neutral", more or "There is no score to judge by.")
    if value >= STRONG:
        return Diagnosis("good", "good", "Good: nothing stands out.")
    text = more or "Nothing stands out: look at the worst examples below."
    return Diagnosis("fair", "neutral", text)


def _training_loss(history: Rows) -> float | None:
    """Returns the training loss of the last rows; None where there is none."""
    losses = [row["loss"] for row in history if "loss" in row and math.isfinite(row["loss"])]
    return statistics.median(losses[-LAST_ROWS:]) if losses else None


def _falling(history: Rows) -> bool:
    """Whether the training loss fell over the last quarter of the steps, by more than a little."""
    losses = [row["loss"] for row in history if "loss" in row and math.isfinite(row["loss"])]
    if len(losses) < MIN_ROWS:
        return False
    quarter = max(2, len(losses) // 4)
    before, last = losses[-2 * quarter : -quarter], losses[-quarter:]
    return statistics.fmean(last) < (1 - STILL_FALLING) * statistics.fmean(before)


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"

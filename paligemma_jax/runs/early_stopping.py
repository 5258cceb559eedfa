"""What a run is followed by: a number of an evaluation, EVALUATION/SCORE; and when it is enough."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence

from paligemma_jax.checkpoints import train_checkpoint
from paligemma_jax.runs import run_length
from paligemma_jax.settings import schema
from paligemma_jax.wording import phrases

PER_LABEL = ("per_class/", "per_group/", "dropped/")


def check(metric: str, evaluations: Sequence[str], *, key: str) -> str:
    """Returns the evaluation that a metric is of, or raises a ValueError if there is none.

    `key`: the config key that names the metric, for the message.
    """
    evaluation = metric.split("/")[0]
    if evaluation not in evaluations:
        raise ValueError(
            f"{key}='{metric}': expected EVALUATION/SCORE, as valid/loss; the evaluations are "
            f"{list(evaluations) or 'none'}"
        )
    return evaluation


def check_scores(
    settings: schema.Settings, names: Mapping[str, Callable[[], Collection[str]]]
) -> None:
    """Raises a ValueError if `keep_best` or `stop_at` name a score that there will not be.

    `names`: of each evaluation, what returns the scores that it gives. Those of a class, or of a
    group of rows, are known only once it is answered: any is let pass.
    """
    wanted = [("keep_best", settings.keep_best)] if settings.keep_best else []
    for key, metric in [*wanted, *(("stop_at", metric) for metric, _ in settings.stop_at or ())]:
        evaluation = check(metric, list(names), key=key)
        score = metric.partition("/")[2]
        if score.startswith(PER_LABEL) or score in (known := names[evaluation]()):
            continue
        hint = phrases.did_you_mean(score, known, prefix=f"{evaluation}/")
        raise ValueError(f"{key}='{metric}': {hint}That evaluation gives {', '.join(known)}")


def find(row: Mapping[str, float], metric: str, *, key: str) -> float | None:
    """Returns the metric's value in a row, None where it has none or one that is not finite.

    Raises:
      ValueError: the evaluation gives other scores.
    """
    given = [name for name in row if name.startswith(f"{metric.split('/')[0]}/")]
    if given and metric not in given:
        raise ValueError(f"{key}='{metric}': that evaluation gives {', '.join(given)}")
    value = row.get(metric, math.nan)
    return value if math.isfinite(value) else None


class Goal:
    """The metrics that end a run once all of them are reached; without any it goes to its end.

    Attributes:
      is_reached: whether they were, in the last row that has any of them.
    """

    def __init__(self, wanted: Mapping[str, float]):
        self._wanted, self._found, self.is_reached = dict(wanted), {}, False

    def __call__(self, row: Mapping[str, float]) -> bool:
        """Returns whether a run has what it wants, going by a row and the ones before it."""
        for metric in self._wanted:
            value = find(row, metric, key="stop_at")
            if value is not None:
                self._found[metric] = value
        self.is_reached = bool(self._wanted) and all(
            metric in self._found and _is_enough(metric, self._found[metric], wanted)
            for metric, wanted in self._wanted.items()
        )
        return self.is_reached

    def describe(self, *, step: int) -> str | None:
        """Returns in a line whether and when the goal was reached; None where there is none."""
        if not self._wanted:
            return None
        values = ", ".join(
            f"{metric} {self._found.get(metric, math.nan):.4g} (wanted: {wanted:g})"
            for metric, wanted in self._wanted.items()
        )
        if self.is_reached:
            return f"stop_at: reached after step {step}: {values}"
        return f"stop_at: NOT reached in {phrases.count(step, 'steps')}: {values}"


def make(settings: schema.Settings) -> Goal:
    """Returns what `stop_at` says.

    Raises:
      ValueError: a metric of no evaluation, or of one that runs only after the last step.
    """
    wanted = {str(metric): float(value) for metric, value in settings.stop_at or ()}
    for metric in wanted:
        name = check(metric, list(settings.evals), key="stop_at")
        if not run_length.is_repeated(settings.evals[name]):
            raise ValueError(
                f"stop_at='{metric}': evals.{name} runs only after the last step; set "
                f"evals.{name}.log_percent, say, to 0.1"
            )
    return Goal(wanted)


def _is_enough(metric: str, value: float, wanted: float) -> bool:
    return value <= wanted if train_checkpoint.best_is(metric) == "min" else value >= wanted
